"""Methods with two networks, in latents: SDXL-Lightning and DMD2 on the structures of SD 1.5, 2.1 and XL."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("diffusers")

from diffusers import DiffusionPipeline, EulerDiscreteScheduler, LCMScheduler

from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.core.few_step import few_step_sample, trailing_timesteps
from cm_lightning.core.noise import generators, unit_noise
from cm_lightning.core.stages import Stage
from cm_lightning.core.turns import Turns
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.draw import draw
from cm_lightning.latent.encoder import encoder_of, features_width
from cm_lightning.latent.few_step import read
from cm_lightning.latent.student import LoRA, WholeUNet
from cm_lightning.modules.latent_adversarial import LatentAdversarialDistillation
from cm_lightning.modules.latent_matching import LatentDistributionMatching
from tests.helpers import InterruptAt, trainer
from tests.latent.tiny import tiny_sd, tiny_sdxl
from tests.modules.test_latent import MAKERS, SOME_LAYERS, batch, captioned, shake

STUDENTS = {"whole": lambda: WholeUNet(None), "lora": lambda: LoRA(4, targets=SOME_LAYERS)}
STAGES = [Stage(8, 4, guidance=1.0), Stage(4, 2, "conditional"), Stage(4, 2, "unconditional"), Stage(2, 1)]
EACH = pytest.mark.parametrize("structure", MAKERS)
EITHER = pytest.mark.parametrize("student", STUDENTS)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def lightning(make=tiny_sdxl, student="lora", **options):
    base = TextToImageBase(make())
    torch.manual_seed(1)
    options = {"stages": STAGES, "optimizer": sgd, **options}
    return LatentAdversarialDistillation(base, STUDENTS[student](), **options)


def matching(make=tiny_sdxl, student="lora", **options):
    base = TextToImageBase(make())
    torch.manual_seed(1)
    options = {"timesteps": [999, 499], "guidance": 1.0, "turns": Turns(2), "optimizer": sgd, **options}
    return LatentDistributionMatching(base, STUDENTS[student](), **options)


BOTH = pytest.mark.parametrize("make", [lightning, matching])


def reached(loss, parameters):
    found = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    return any(g is not None and bool(g.any()) for g in found)


@EACH
def test_the_encoder_ends_after_the_middle_block_and_shares_the_network(structure):
    base = TextToImageBase(MAKERS[structure]())
    view, seen = encoder_of(base.unet), []
    with base.unet.mid_block.register_forward_hook(lambda *call: seen.append(call[-1])):
        z, c = batch(type("M", (), {"base": base}))
        t = torch.full((6,), 400)
        base.output(base.unet, z, t, c)
        features = base.output(view, z, t, c)
    torch.testing.assert_close(features, seen[0])
    assert features.shape[1] == features_width(base.unet)
    assert {id(p) for p in view.parameters()} < {id(p) for p in base.unet.parameters()}
    assert len(base.unet.up_blocks) > 0


@BOTH
@EITHER
def test_all_that_is_trained_is_in_training_mode(make, student):
    """A pretrained network is in eval mode, in which dropout is off."""
    assert not [name for name, part in make(student=student).named_modules() if not part.training]


@BOTH
@EITHER
def test_the_loss_of_each_network_reaches_it_alone_and_the_base_not_at_all(make, student):
    m = make(student=student, **({"stages": STAGES[1:2]} if make is lightning else {}))
    shake(m)
    base = [p for p in m.base.unet.parameters() if not any(p is own for own in m.backbone.parameters())]
    generator, critic = m.losses(*batch(m))
    assert reached(generator, m.backbone.parameters())
    assert not reached(generator, m.critic.parameters())
    assert reached(critic, m.critic.parameters())
    assert not reached(critic, m.backbone.parameters())
    assert not any(p.requires_grad for p in base)


@BOTH
@EITHER
def test_checkpointing_saves_memory_in_both_networks_and_keeps_the_gradients(make, student):
    kept, found = [], []
    for checkpointing in (False, True):
        options = {"stages": STAGES[1:2]} if make is lightning else {}
        m = make(student=student, gradient_checkpointing=checkpointing, **options)
        shake(m)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            generator, critic = m.losses(*batch(m), torch.Generator().manual_seed(3))
        (generator + critic).backward()
        kept.append(sum(sizes))
        found.append(
            [[p.grad for p in network.parameters() if p.grad is not None] for network in (m.backbone, m.critic)]
        )
    assert kept[1] < 0.8 * kept[0]
    assert all(len(of_network) > 10 for of_network in found[0])
    torch.testing.assert_close(found[1], found[0])


def test_a_checkpointed_pass_can_be_differentiated_twice():
    m = lightning(student="whole", gradient_checkpointing=True)
    loss, _ = m.losses(*batch(m), torch.Generator().manual_seed(3))
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in m.backbone.parameters() if p.grad is not None]
    loss.backward()
    twice = [p.grad for p in m.backbone.parameters() if p.grad is not None]
    torch.testing.assert_close(twice, [2 * g for g in once])


@EACH
def test_before_training_a_student_s_error_is_that_of_its_longer_steps(structure):
    """With as many evaluations of the teacher as of the student both would agree; the error shows the difference."""
    m = lightning(MAKERS[structure], stages=[Stage(2, 1)]).eval()
    z, c = batch(m)
    loss, critic = m.losses(z, c, torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    torch.randint(1, (6,), generator=g)
    noise = torch.randn(z.shape, generator=g)
    schedule = m.base.schedule

    def clean(x, t):
        return schedule.clean(m.base.output(m.base.unet, x, t, c), x, t)

    with torch.no_grad():
        goal = few_step_sample(clean, schedule, noise, [999, 499])
        error = (few_step_sample(clean, schedule, noise, [999]) - goal).square().mean()
    alpha_bar = schedule.alphas_cumprod[999]
    assert critic is None
    assert loss.item() == pytest.approx(float(error * (1 + alpha_bar / (1 - alpha_bar))), rel=1e-3)


@EITHER
def test_later_stages_learn_from_the_student_before_without_guidance(student):
    m = lightning(student=student)
    shake(m)
    m.followers[0].restart()
    z, c = batch(m)
    t = torch.full((6,), 499)
    first, second = (m.taught(z, t, c, index) for index in (0, 1))
    torch.testing.assert_close(second, m.clean(z, t, c, m.stages.stages[1]), rtol=1e-4, atol=1e-4)
    w = torch.full((6,), 1.0)
    torch.testing.assert_close(first, m.guided_teacher(z, t, c, w))
    assert not torch.allclose(first, second, atol=1e-3)


@EACH
@EITHER
def test_a_lightning_student_is_drawn_by_plain_diffusers_as_by_its_own_sampler(structure, student, tmp_path):
    m = lightning(MAKERS[structure], student, stages=[Stage(8, 4), Stage(4, 2)]).eval()
    shake(m)
    m.export(tmp_path)
    assert read(tmp_path / "few_step.json").steps == 2
    pipe = m.pipeline()
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    if student == "whole":
        pipe = DiffusionPipeline.from_pretrained(tmp_path)
    else:
        pipe = MAKERS[structure]()
        pipe.load_lora_weights(tmp_path)
        pipe.scheduler = EulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    prompts = ["a b", "a c"]
    z = unit_noise((2, 4, 8, 8), generators(0, range(2)))
    c = m.base.encode_prompts(prompts, (16, 16))
    with torch.no_grad():
        stage = m.stages.stages[-1]
        ours = few_step_sample(lambda x, t: m.clean(x, t, c, stage), m.base.schedule, z, trailing_timesteps(2))
    theirs = pipe(
        prompts, num_inference_steps=2, guidance_scale=0.0, generator=generators(0, range(2)), output_type="latent",
        height=16, width=16,
    ).images  # fmt: skip
    torch.testing.assert_close(theirs.float(), ours, rtol=1e-4, atol=1e-4)


def test_a_student_of_one_step_may_predict_the_clean_latent(tmp_path):
    m = lightning(student="whole", stages=[Stage(2, 1)], clean_in_one_step=True).eval()
    z, c = batch(m)
    t = torch.full((6,), 999)
    torch.testing.assert_close(m.clean(z, t, c, m.stages.first), m.base.output(m.student.unet, z, t, c))
    assert m.scheduler().config.prediction_type == "sample"
    assert lightning(stages=[Stage(4, 2)], clean_in_one_step=True).scheduler().config.prediction_type == "epsilon"


@EITHER
def test_a_matched_generator_is_drawn_by_the_scheduler_of_lcm(student):
    m = matching(student=student).eval()
    shake(m)
    pipe = m.pipeline()
    assert isinstance(pipe.scheduler, LCMScheduler)
    pipe.scheduler.set_timesteps(2)
    assert pipe.scheduler.timesteps.tolist() == [999, 499]
    assert draw(pipe, ["a b"], 2, 1.0).shape == (1, 3, 16, 16)
    assert matching(timesteps=[399]).few_step().timesteps == (399,)


def test_backward_simulation_starts_from_the_generator_s_own_output():
    m = matching().eval()
    shake(m)
    z, c = batch(m)
    schedule, t = m.base.schedule, torch.full((6,), 499)
    with torch.no_grad():
        own = m.samples(z, c, 2, torch.Generator().manual_seed(3))
        first = m.generator(z, torch.full((6,), 999), c)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
        expected = m.generator(schedule.point(first, noise, t), t, c)
    torch.testing.assert_close(own, expected)


@EACH
def test_its_gradient_is_that_of_the_guidance_while_the_fake_score_is_the_teacher(structure):
    m = matching(MAKERS[structure], guidance=0.0, gan_weight=0.0)
    generator, _ = m.losses(*batch(m))
    assert generator.item() == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize(("make", "student"), [(lightning, "whole"), (matching, "lora")])
def test_a_run_resumes_from_its_checkpoint_to_the_bit(make, student, tmp_path):
    def fit(name, callbacks=(), resume=None, seed=0):
        torch.manual_seed(seed)
        m = make(tiny_sd, student)
        t = trainer(tmp_path, max_steps=8, callbacks=list(callbacks), max_epochs=-1)
        t.fit(m, DataLoader([*captioned(n=4, batch_size=1).dataset] * 8, batch_size=4), ckpt_path=resume)
        t.save_checkpoint(tmp_path / name)
        return copy.deepcopy(read_checkpoint(tmp_path / name)["state_dict"])

    whole = fit("whole.ckpt")
    fit("half.ckpt", [InterruptAt(5)])
    rest = fit("rest.ckpt", resume=str(tmp_path / "half.ckpt"), seed=9)
    torch.testing.assert_close(rest, whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: lightning(stages=[]), "stages must be given"),
        (lambda: lightning(discriminator_levels=[1000]), "discriminator_levels must be timesteps in 0 ... 999"),
        (lambda: lightning(discriminator_levels=[]), "discriminator_levels must be given"),
        (lambda: matching(timesteps=[]), "timesteps must descend within 0 ... 999"),
        (lambda: matching(timesteps=[499, 999]), "timesteps must descend within 0 ... 999"),
        (lambda: matching(timesteps=[1200]), "timesteps must descend within 0 ... 999"),
        (lambda: matching(guidance=-1.0), "guidance must be a finite number of at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(make, line):
    with pytest.raises(ConfigError, match=line):
        make()
