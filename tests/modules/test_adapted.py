"""A whole network with a LoRA in it: stages that train the one or the other, with a merge between them."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("diffusers")

from diffusers import DiffusionPipeline, UNet2DConditionModel

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.callbacks.ema import EMA
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.core.few_step import few_step_sample, trailing_timesteps
from cm_lightning.core.noise import generators, unit_noise
from cm_lightning.core.stages import Stage
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.latent.adapted import AdaptedUNet
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.student import LoRA, WholeUNet
from cm_lightning.modules.adversarial import AdversarialDistillation
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.latent_adversarial import LatentAdversarialDistillation
from cm_lightning.modules.latent_consistency import LatentConsistencyDistillation
from cm_lightning.modules.latent_matching import LatentDistributionMatching
from tests.helpers import InterruptAt, trainer
from tests.latent.tiny import tiny_sd, tiny_sdxl
from tests.modules.test_latent import MAKERS, batch, captioned, shake

LAYERS = ("to_q", "proj_in", "conv1", "conv_shortcut")  # linear layers, and convolutions of 1 x 1 and 3 x 3
STAGES = [
    Stage(8, 4, trains="lora", guidance=1.0),
    Stage(4, 2, "conditional", trains="lora"),
    Stage(4, 2, "unconditional", trains="whole"),
]
EACH_PART = pytest.mark.parametrize("part", ["lora", "whole"])


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)


def lightning(make=tiny_sd, **options):
    base = TextToImageBase(make())
    torch.manual_seed(1)
    options = {"student": AdaptedUNet(4, LAYERS), "stages": STAGES, "optimizer": adamw, **options}
    return LatentAdversarialDistillation(base, **options)


def data():
    return DataLoader([*captioned(n=4, batch_size=1).dataset] * 8, batch_size=4)


def of_part(m):
    """The names of the student's weights, by the part that they belong to."""
    names = [name for name, _ in m.backbone.named_parameters()]
    return {
        "lora": {name for name in names if ".lora_" in name},
        "whole": {name for name in names if ".lora_" not in name},
    }


@torch.no_grad()
def drawn(m):
    z, c = batch(m)
    return m.clean(z, torch.full((6,), 499), c, m.stages.stages[-1])


@pytest.mark.parametrize("structure", MAKERS)
def test_the_student_starts_as_its_base(structure):
    m = lightning(MAKERS[structure])
    z, c = batch(m)
    t = torch.full((6,), 499)
    torch.testing.assert_close(m.base.output(m.student.unet, z, t, c), m.base.output(m.base.unet, z, t, c))
    assert all(part.training for part in m.modules())
    shake(m)
    assert (m.base.output(m.student.unet, z, t, c) - m.base.output(m.base.unet, z, t, c)).abs().max() > 1e-3


def test_the_lora_takes_part_in_all_but_the_training_of_the_whole_network():
    """There it is 0, and would cost time. A checkpoint from within a stage is validated as one of the last stage."""
    m = lightning(stages=[Stage(4, 2, trains="lora"), Stage(4, 2, trains="whole")])
    shake(m)
    z, c = batch(m)
    calls = []
    adapter = next(part for name, part in m.backbone.named_modules() if name.endswith(".lora_B.stage"))
    adapter.register_forward_hook(lambda *_: calls.append(True))
    t = torch.full((6,), 499)
    with torch.no_grad():
        own, last = m.clean(z, t, c, m.stages.first), m.clean(z, t, c, m.stages.stages[-1])
    assert len(calls) == 2
    torch.testing.assert_close(last, own, rtol=0, atol=0)
    m.student.merge(1)
    calls.clear()
    torch.testing.assert_close(m.clean(z, t, c, m.stages.stages[-1]), own, rtol=1e-4, atol=1e-5)
    assert not calls


@EACH_PART
@pytest.mark.parametrize("objective", ["mse", "conditional"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_of_a_stage_reaches_its_part_alone(part, objective, checkpointing):
    m = lightning(stages=[Stage(8, 4, objective, trains=part)], gradient_checkpointing=checkpointing)
    shake(m)
    m.losses(*batch(m), torch.Generator().manual_seed(3)).generator.backward()
    reached = {name for name, p in m.backbone.named_parameters() if p.grad is not None}
    assert reached == of_part(m)[part]
    assert all(p.requires_grad for p in m.backbone.parameters())


def test_checkpointing_does_not_change_the_gradients():
    found = []
    for checkpointing in (False, True):
        m = lightning(stages=[Stage(8, 4, "conditional", trains="lora")], gradient_checkpointing=checkpointing)
        shake(m)
        m.losses(*batch(m), torch.Generator().manual_seed(3)).generator.backward()
        found.append([p.grad for p in m.backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1], found[0])


def test_a_merge_changes_neither_what_the_student_draws_nor_what_its_average_draws(tmp_path):
    m, average, other = lightning(tiny_sdxl), EMA(0.9), EMA(0.5, evaluate=False)
    run = trainer(tmp_path, max_steps=1, callbacks=[average, other])
    run.fit(m, data())
    seen = []
    shake(m)
    for ema, seed in ((average, 6), (other, 7)):
        g = torch.Generator().manual_seed(seed)
        ema.average = {name: p + 0.02 * torch.randn(p.shape, generator=g) for name, p in ema.average.items()}
    for _ in range(2):
        seen.append([drawn(m)])
        for ema in (average, other):
            with ema.applied(m):
                seen[-1].append(drawn(m))
        m.rewrite(partial(m.merge, 3))
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(seen[0][1:], seen[0][:-1], strict=True))
    for state in (m.backbone.state_dict(), average.average, other.average):
        ups = [p for name, p in state.items() if ".lora_B." in name]
        assert ups
        assert not any(p.any() for p in ups)
    # the same A everywhere, so that an average of it stays what it is
    new = {name: p for name, p in m.backbone.state_dict().items() if ".lora_A." in name}
    torch.testing.assert_close({name: average.average[name] for name in new}, new, rtol=0, atol=0)


def test_a_stage_moves_its_part_alone_and_the_next_one_starts_with_an_empty_lora(tmp_path):
    m = lightning()
    parts, seen = of_part(m), []
    step = m.optimizer_step

    def watched(*args, **options):
        stage = m.stages.at(m.clock)
        before = {name: p.clone() for name, p in m.backbone.named_parameters()}
        begin, m._begin_stage = m._begin_stage, lambda: None
        step(*args, **options)
        m._begin_stage = begin
        moved = {name for name, p in m.backbone.named_parameters() if not p.equal(before[name])}
        unmerged = drawn(m)
        if m.stages.begins(m.clock):
            m._begin_stage()
            torch.testing.assert_close(drawn(m), unmerged, rtol=1e-4, atol=1e-5)
            assert not any(p.any() for name, p in m.backbone.named_parameters() if ".lora_B." in name)
        seen.append((stage.trains, moved <= parts[stage.trains], bool(moved)))

    m.optimizer_step = watched
    trainer(tmp_path, max_steps=6, accumulate_grad_batches=2, gradient_clip_val=1.0).fit(m, data())
    assert [part for part, *_ in seen] == [*["lora"] * 4, "whole", "whole"]
    assert all(own and moved for _, own, moved in seen)
    assert not any(p.any() for name, p in m.before.named_parameters() if ".lora_B." in name)


def fit(path, callbacks=(), resume=None, seed=0):
    """The weights and their average at the end of a run, whose checkpoint is written to a path."""
    torch.manual_seed(seed)
    t = trainer(path.parent, max_steps=5, callbacks=[EMA(0.9), *callbacks], max_epochs=-1)
    t.fit(lightning(), data(), ckpt_path=resume)
    t.save_checkpoint(path)
    found = read_checkpoint(path)
    return found["state_dict"], [s["average"] for s in found["callbacks"].values() if "average" in s]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole") / "whole.ckpt")


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_resumes_in_any_stage_and_between_them_to_the_bit(step, never_stopped, tmp_path):
    fit(tmp_path / "half.ckpt", [InterruptAt(step)])
    rest = fit(tmp_path / "rest.ckpt", resume=str(tmp_path / "half.ckpt"), seed=9)
    torch.testing.assert_close(rest, never_stopped, rtol=0, atol=0)


@pytest.mark.parametrize(("structure", "part"), [("sd15", "lora"), ("sd21", "whole"), ("sdxl", "lora")])
def test_its_export_is_a_whole_network_that_plain_diffusers_draws_with(structure, part, tmp_path):
    m = lightning(MAKERS[structure], stages=[Stage(4, 2, trains=part)]).eval()
    shake(m)
    before = drawn(m)
    m.export(tmp_path)
    torch.testing.assert_close(drawn(m), before, rtol=0, atol=0)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.unet) is UNet2DConditionModel
    assert pipe.unet.state_dict().keys() == m.base.unet.state_dict().keys()
    prompts = ["a b", "a c"]
    z, c = unit_noise((2, 4, 8, 8), generators(0, range(2))), m.base.encode_prompts(prompts, (16, 16))
    with torch.no_grad():
        ours = few_step_sample(lambda x, t: m.clean(x, t, c, m.stages.first), m.base.schedule, z, trailing_timesteps(2))
    theirs = pipe(
        prompts, num_inference_steps=2, guidance_scale=0.0, generator=generators(0, range(2)), output_type="latent",
        height=16, width=16,
    ).images  # fmt: skip
    torch.testing.assert_close(theirs.float(), ours, rtol=1e-4, atol=1e-4)


def test_the_student_exports_itself_merged(tmp_path):
    m = lightning(stages=[Stage(4, 2, trains="lora")])
    shake(m)
    m.student.export(tmp_path, m.pipeline())
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert unet.state_dict().keys() == m.base.unet.state_dict().keys()
    z, c = batch(m)
    t = torch.full((6,), 499)
    with torch.no_grad():
        theirs, ours = (m.base.output(network, z, t, c) for network in (unet, m.student.unet))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["whole", "lora"])
def test_training_starts_from_a_whole_network_or_in_mid_lora(start, tmp_path):
    """The LoRA of the file becomes part of the network, so that its stage can train the whole."""
    stage = Stage(4, 2, trains="lora") if start == "lora" else Stage(4, 2)
    first = lightning(stages=[stage], **({} if start == "lora" else {"student": WholeUNet(None)}))
    run = trainer(tmp_path, max_steps=2)
    run.fit(first, data())
    shake(first)
    run.save_checkpoint(path := tmp_path / "first.ckpt")
    m = lightning(stages=[Stage(4, 2, trains="whole"), Stage(2, 1, trains="lora")], start_from=str(path))
    m.trainer = trainer(tmp_path, max_steps=2)
    m.setup("fit")
    torch.testing.assert_close(drawn(m), drawn(first), rtol=1e-4, atol=1e-5)
    for state in (m.backbone.state_dict(), m.before.state_dict()):
        assert not any(p.any() for name, p in state.items() if ".lora_B." in name)
    torch.testing.assert_close(m.before.state_dict(), m.backbone.state_dict(), rtol=0, atol=0)


def test_the_network_of_another_file_is_refused(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.fit(lightning(stages=[Stage(4, 2)], student=LoRA(4, targets=LAYERS)), data())
    run.save_checkpoint(path := tmp_path / "lora.ckpt")
    m = lightning(start_from=str(path))
    m.trainer = trainer(tmp_path, max_steps=2)
    with pytest.raises(CheckpointError, match=r"start_from: the backbone in .* is another network"):
        m.setup("fit")


def in_pixels():
    network = ResidualMLP(2, 16, 2)
    AdversarialDistillation(network, (2,), DiffusionModule(network, (2,)), [Stage(4, 2, trains="lora")])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Stage(4, 2, trains="LoRA"), "Stage: trains must be lora, whole or null, got 'LoRA'"),
        (lambda: lightning(stages=[Stage(4, 2)]), "4 -> 2 mse must set trains to lora or whole, because the"),
        (lambda: lightning(stages=[Stage(4, 2, trains="lora")], student=LoRA(4)), "mse lora sets trains, .*leave it"),
        (lambda: lightning(stages=[Stage(4, 2, trains="whole")], student=WholeUNet(None)), "leave it out"),
        (in_pixels, "4 -> 2 mse lora sets trains, which is for the student AdaptedUNet: leave it out"),
        (lambda: LatentConsistencyDistillation(TextToImageBase(tiny_sd()), AdaptedUNet(4)), "is for methods in stages"),
        (
            lambda: LatentDistributionMatching(TextToImageBase(tiny_sd()), AdaptedUNet(4), [999]),
            "AdaptedUNet is for methods in stages, .* take WholeUNet or LoRA",
        ),
        (lambda: lightning(student=AdaptedUNet(4, ["to_nothing"])), "no layer of the UNet is called to_nothing"),
        (lambda: AdaptedUNet(0), "rank must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(make, line):
    with pytest.raises(ConfigError, match=line):
        make()
