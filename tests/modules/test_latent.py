"""Training in latent space: a base, and its distillation whole or by an adapter."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("diffusers")

from diffusers import DiffusionPipeline, LCMScheduler

from cm_lightning.callbacks.ema import EMA
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.core.distance import elementwise_huber
from cm_lightning.core.latent import LatentSchedule, lcm_sample, lcm_timesteps
from cm_lightning.core.noise import expand
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import Conditioning, TextToImageBase
from cm_lightning.latent.draw import draw
from cm_lightning.latent.encoded import Encoded
from cm_lightning.latent.student import LoRA, WholeUNet
from cm_lightning.modules.latent_consistency import Guided, LatentConsistencyDistillation
from cm_lightning.modules.latent_diffusion import LatentDiffusionModule
from tests.helpers import trainer
from tests.latent.tiny import tiny_sd, tiny_sdxl

MAKERS = {"sd15": tiny_sd, "sd21": lambda: tiny_sd(v_prediction=True), "sdxl": tiny_sdxl}
SOME_LAYERS = ("to_q", "conv1")  # of each kind one: to put an adapter into each layer takes long
STUDENTS = {"whole": lambda: WholeUNet(8), "lora": lambda: LoRA(4, targets=SOME_LAYERS)}


def distillation(make=tiny_sd, student="lora", **options):
    base = TextToImageBase(make())
    torch.manual_seed(1)
    return LatentConsistencyDistillation(base, STUDENTS[student](), guidance=(0.0, 2.0), **options)


def captioned(n=8, size=16, batch_size=4):
    g = torch.Generator().manual_seed(3)
    images = torch.rand(n, 3, size, size, generator=g) * 2 - 1
    return DataLoader([(image, f"a {'abcd'[i % 4]}") for i, image in enumerate(images)], batch_size=batch_size)


def batch(m, n=6):
    x = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return x, m.base.encode_prompts([f"a {'abcd'[i % 4]}" for i in range(n)], (16, 16))


def shake(m, scale=0.02):
    """Move the trained weights away from their initial values."""
    g = torch.Generator().manual_seed(4)
    for p in m.backbone.parameters():
        p.data += scale * torch.randn(p.shape, generator=g)


@pytest.mark.parametrize("prediction", MAKERS)
def test_diffusion_s_loss_is_the_error_of_the_prediction(prediction):
    m = LatentDiffusionModule(TextToImageBase(MAKERS[prediction]())).eval()
    z, c = batch(m)
    loss = m.batch_loss((z, c), 0, torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    t = torch.randint(1000, (6,), generator=g)
    epsilon = torch.randn(z.shape, generator=g)
    schedule = m.base.schedule
    target = schedule.target(z, t, epsilon)
    output = m.base.output(m.backbone, schedule.point(z, epsilon, t), t, c)
    assert loss.item() == pytest.approx((output - target).square().mean().item(), rel=1e-5)
    assert schedule.prediction == ("v_prediction" if prediction == "sd21" else "epsilon")


def test_captions_are_dropped_in_training_alone():
    m = LatentDiffusionModule(TextToImageBase(tiny_sd()), caption_dropout=1.0)
    z, c = batch(m)
    seen = []
    m.backbone.register_forward_pre_hook(lambda _, a, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True)
    m.batch_loss((z, c), 0)
    m.eval().batch_loss((z, c), 0)
    torch.testing.assert_close(seen[0], m.no_prompt(z).hidden)
    torch.testing.assert_close(seen[1], c.hidden)


@pytest.mark.parametrize("structure", MAKERS)
def test_a_trained_base_is_a_pipeline_of_diffusers(structure, tmp_path):
    m = LatentDiffusionModule(TextToImageBase(MAKERS[structure]()))
    before = m.backbone.conv_in.weight.clone()
    trainer(tmp_path, max_steps=2).fit(m, captioned())
    assert not torch.equal(before, m.backbone.conv_in.weight)
    m.export(tmp_path / "export")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "export")
    pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(pipe.unet.conv_in.weight, m.backbone.conv_in.weight)
    z = torch.randn(1, 4, 8, 8)
    drawn = [
        p(prompt="a b", latents=z, num_inference_steps=2, output_type="latent").images for p in (pipe, m.pipeline())
    ]
    torch.testing.assert_close(*drawn)


@pytest.mark.parametrize("structure", MAKERS)
@pytest.mark.parametrize("student", STUDENTS)
def test_the_student_starts_as_its_teacher(structure, student):
    m = distillation(MAKERS[structure], student)
    z, c = batch(m)
    t, w = torch.full((6,), 519), torch.linspace(0, 2, 6)
    theirs = TextToImageBase(MAKERS[structure]())
    expected = theirs.output(theirs.unet, z, t, c)
    torch.testing.assert_close(m.network_output(z, t, c, w), expected)
    shake(m)
    assert (m.network_output(z, t, c, w) - expected).abs().max() > 1e-3
    torch.testing.assert_close(m.student.teacher(m.base, z, t, c), expected)  # and leaves it as it was


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("structure", MAKERS)
def test_the_loss_is_lcm_s(structure, student):
    """Algorithm 1 of Luo et al. 2023, written out for each sample."""
    m = distillation(MAKERS[structure], student, target_rate=ConstantRate(0.5))
    shake(m)
    z_0, c = batch(m)
    loss = m.batch_loss((z_0, c), 0, torch.Generator().manual_seed(5))

    g = torch.Generator().manual_seed(5)
    w = 2 * torch.rand(6, generator=g)
    t = torch.arange(19, 1000, 20)[torch.randint(50, (6,), generator=g)]
    epsilon = torch.randn(z_0.shape, generator=g)
    alphas, v = m.base.pipe.scheduler.alphas_cumprod, structure == "sd21"

    def clean(o, z, i):
        a, s = alphas[i].sqrt(), (1 - alphas[i]).sqrt()
        return ((a * z - s * o), (a * o + s * z)) if v else ((z - s * o) / a, o)

    def f(o, z, i):
        scaled = 10.0 * float(i)
        return 0.25 / (scaled**2 + 0.25) * z + scaled / (scaled**2 + 0.25) ** 0.5 * clean(o, z, i)[0]

    total = 0.0
    for i in range(6):
        row = slice(i, i + 1)
        now, then = t[row], (t[row] - 20).clamp(min=0)
        z_t = alphas[now].sqrt() * z_0[row] + (1 - alphas[now]).sqrt() * epsilon[row]
        own, nothing = c.rows(row), m.no_prompt(z_t)
        o_c, o_u = (m.student.teacher(m.base, z_t, now, k) for k in (own, nothing))
        x0, e = clean(o_c + w[i] * (o_c - o_u), z_t, int(now))
        z_r = alphas[then].sqrt() * x0 + (1 - alphas[then]).sqrt() * e
        f_t = f(m.network_output(z_t, now, own, w[row]), z_t, int(now))
        # the target holds the weights of the beginning, which are the teacher's
        f_r = f(m.student.teacher(m.base, z_r, then, own), z_r, int(then))
        total += (((f_t - f_r) ** 2 + 1e-6).sqrt() - 1e-3).mean().item() / 6
    assert loss.item() == pytest.approx(total, rel=2e-3)


class Exact(nn.Module):
    """For latents N(0, s^2): the teacher, E[epsilon | z_t]; or the network whose f is the end of z_t's trajectory."""

    dtype = torch.float64

    def __init__(self, schedule, s, student):
        super().__init__()
        self.schedule, self.s, self.student = schedule, s, student
        self.unused = nn.Parameter(torch.zeros(1))
        self.config = {"sample_size": 2}

    def variance(self, t, x):
        a, b = (expand(scale, x) for scale in self.schedule.scales(t))
        return a**2 * self.s**2 + b**2

    def forward(self, sample, timestep, **_):
        a, b = (expand(scale, sample) for scale in self.schedule.scales(timestep))
        if not self.student:
            return (sample * b / self.variance(timestep, sample) + 0 * self.unused,)
        end = sample * (self.variance(torch.zeros_like(timestep), sample) / self.variance(timestep, sample)).sqrt()
        s = 10.0 * timestep.double().view(-1, 1, 1, 1)
        x0 = (end - 0.25 / (s**2 + 0.25) * sample) / (s / (s**2 + 0.25).sqrt()).clamp(min=1e-30)
        return ((sample - a * x0) / b + 0 * self.unused,)


class ExactBase:
    """A base of exact networks: no text, no autoencoder."""

    downsampling, is_xl = 8, False

    def __init__(self, s):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.schedule = LatentSchedule((1 - betas).cumprod(0))
        self.unet = Exact(self.schedule, s, student=False)

    def no_prompt(self, size):
        return Conditioning(torch.zeros(1, 1, 1, dtype=torch.float64))

    arguments = staticmethod(TextToImageBase.arguments)

    def output(self, unet, *arguments):
        return unet(**self.arguments(unet, *arguments))[0]


class ExactStudent(WholeUNet):
    def attach(self, base):
        self.unet = self.weights = Exact(base.schedule, base.unet.s, student=True)


@pytest.mark.parametrize("guidance", [(0.0, 0.0), (0.0, 5.0)])
def test_with_the_exact_teacher_the_loss_of_the_exact_map_vanishes(guidance):
    """One DDIM step misses the trajectory by O(k^2), so the loss falls with the length of the step.

    The guidance does not matter to a teacher without text.
    """
    losses = {}
    for steps in (50, 100, 500):
        m = LatentConsistencyDistillation(ExactBase(0.5), ExactStudent(), guidance, timesteps=steps)
        z = 0.5 * torch.randn(2000, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        c = Conditioning(torch.zeros(2000, 1, 1, dtype=torch.float64))
        losses[steps] = m.batch_loss((z, c), 0, torch.Generator().manual_seed(1)).item()
    wrong = elementwise_huber(z, 1.1 * z).mean().item()
    assert losses[50] < 0.01 * wrong
    assert losses[100] < losses[50] / 4
    assert losses[500] < losses[50] / 500


@pytest.mark.parametrize("student", STUDENTS)
def test_only_what_is_trained_is_trained_averaged_and_saved(student, tmp_path):
    m, ema = distillation(student=student, target_rate=ConstantRate(0.5)), EMA(0.5)
    frozen = {n: p.clone() for n, p in m.base.unet.named_parameters() if "lora" not in n}
    text = m.base.pipe.text_encoder
    t = trainer(tmp_path, max_steps=2, callbacks=[ema], enable_checkpointing=True)
    t.fit(m, captioned())
    t.save_checkpoint(tmp_path / "x.ckpt")
    now = {n: p for n, p in m.base.unet.named_parameters() if "lora" not in n}
    torch.testing.assert_close(now, frozen, rtol=0, atol=0)
    optimized = {id(p) for group in t.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in m.backbone.parameters()}
    state = read_checkpoint(tmp_path / "x.ckpt")["state_dict"]
    assert {name.split(".")[0] for name in state} == {"backbone", "target"}
    assert set(ema.average) == set(m.backbone.state_dict())
    assert not any(p.requires_grad for p in text.parameters())
    if student == "lora":
        assert all("lora" in name for name in state)
        assert sum(v.numel() for v in state.values()) < sum(p.numel() for p in m.base.unet.parameters())


@pytest.mark.parametrize("student", STUDENTS)
def test_the_target_is_the_running_average_of_the_student(student, tmp_path):
    m = distillation(student=student, target_rate=ConstantRate(0.9), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    start = {n: p.clone() for n, p in m.target.named_parameters()}
    trainer(tmp_path, max_steps=1).fit(m, captioned())
    for name, p in m.backbone.named_parameters():
        torch.testing.assert_close(dict(m.target.named_parameters())[name], 0.9 * start[name] + 0.1 * p.detach())
    z, c = batch(m)
    t, w = torch.full((6,), 519), torch.zeros(6)
    shake(m, 0.1)
    by_target = m.target_map(z, t, torch.zeros_like(t), Guided(c, w))
    assert (by_target - m.consistency_function(z, t, c, w)).abs().max() > 1e-3
    m.backbone.load_state_dict(m.target.state_dict())
    torch.testing.assert_close(m.consistency_function(z, t, c, w), by_target)


@pytest.mark.parametrize("structure", MAKERS)
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("steps", [1, 4])
def test_samples_are_those_of_diffusers_own_pipeline(structure, student, steps):
    m = distillation(MAKERS[structure], student)
    shake(m)
    pipe, prompts = m.pipeline(), ["a b", "a c"]
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    theirs = pipe(
        prompt=prompts, latents=z, num_inference_steps=steps, guidance_scale=1.0, output_type="latent",
        generator=torch.Generator().manual_seed(8),
    ).images  # fmt: skip
    noise, c = torch.Generator().manual_seed(8), m.base.encode_prompts(prompts, (16, 16))
    with torch.no_grad():
        ours = lcm_sample(
            lambda x, t: m.consistency_function(x, t, c, torch.zeros(2)), m.base.schedule, z, lcm_timesteps(steps),
            lambda x: torch.randn(x.shape, generator=noise),
        )  # fmt: skip
    assert isinstance(pipe.scheduler, LCMScheduler)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_whole_network_takes_the_guidance():
    m = distillation(student="whole")
    shake(m)
    z = torch.randn(1, 4, 8, 8)
    draw = {"prompt": "a b", "latents": z, "num_inference_steps": 1, "output_type": "latent"}
    theirs = m.pipeline()(**draw, guidance_scale=2.5).images
    c = m.base.encode_prompts(["a b"], (16, 16))
    with torch.no_grad():
        ours = m.consistency_function(z, torch.tensor([999]), c, torch.tensor([1.5]))  # w = guidance_scale - 1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (m.pipeline()(**draw, guidance_scale=1.0).images - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("student", STUDENTS)
def test_checkpointing_changes_memory_not_gradients(student):
    gradients = []
    for checkpointing in (False, True):
        m = distillation(student=student, gradient_checkpointing=checkpointing)
        shake(m)
        m.batch_loss(batch(m), 0, torch.Generator().manual_seed(5)).backward()
        gradients.append([p.grad for p in m.backbone.parameters() if p.grad is not None])
        assert m.student.unet.is_gradient_checkpointing == checkpointing
    assert len(gradients[0]) > 10
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_an_adapter_in_a_half_precision_network_is_trained_in_float32(tmp_path):
    pipe = tiny_sdxl().to(torch.bfloat16)
    pipe.vae.float()
    m = LatentConsistencyDistillation(TextToImageBase(pipe), LoRA(4), (0.0, 1.0), target_rate=ConstantRate(0.5))
    trainer(tmp_path, max_steps=2, precision="bf16-mixed").fit(m, captioned())
    assert {p.dtype for p in m.backbone.parameters()} == {torch.float32}
    assert m.base.unet.conv_in.weight.dtype == torch.bfloat16
    assert any(p.abs().max() > 0 for n, p in m.backbone.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("student", STUDENTS)
def test_a_base_of_sixteen_bits_is_drawn_from_and_exported(make, student, tmp_path):
    pipe = make().to(torch.bfloat16)
    pipe.vae.float()
    m = LatentConsistencyDistillation(TextToImageBase(pipe), STUDENTS[student](), (0.0, 1.0))
    with m.base.drawing(m.device):
        assert draw(m.pipeline(), ["a b"], 1, 1.0).shape == (1, 3, 16, 16)
    m.export(tmp_path)
    if student == "whole":
        exported = DiffusionPipeline.from_pretrained(tmp_path)
        exported.set_progress_bar_config(disable=True)
        assert draw(exported, ["a b"], 1, 1.0).shape == (1, 3, 16, 16)


def test_images_are_encoded_in_full_precision_under_autocast():
    base, images = TextToImageBase(tiny_sd()), torch.rand(2, 3, 16, 16)
    expected = base.encode_images(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(base.encode_images(images), expected)
        assert base.decode(expected).dtype == torch.float32


def test_start_from_starts_the_target_too(tmp_path):
    m = distillation(target_rate=ConstantRate(0.5))
    shake(m)
    t = trainer(tmp_path, max_steps=1, enable_checkpointing=True)
    t.fit(m, captioned())
    t.save_checkpoint(tmp_path / "x.ckpt")
    n = distillation(target_rate=ConstantRate(0.5), start_from=str(tmp_path / "x.ckpt"))
    n.trainer = trainer(tmp_path)
    n.setup("fit")
    torch.testing.assert_close(dict(n.target.state_dict()), dict(m.backbone.state_dict()))


def test_encoded_batches_train_as_images_and_captions_do(tmp_path):
    images, captions = next(iter(captioned()))
    m = distillation()
    z, c = m.latents_and_conditions([images, captions])
    rows = Encoded(z, torch.arange(4), c).__getitems__([2, 0])
    torch.testing.assert_close(rows[0], z[[2, 0]])
    torch.testing.assert_close(m.latents_and_conditions(rows)[1].hidden, c.hidden[[2, 0]])


def test_what_does_not_fit_is_said_in_a_line(tmp_path):
    m = distillation()
    for wrong in (torch.zeros(2, 3, 16, 16), (torch.zeros(2, 3, 16, 16), torch.zeros(2))):
        with pytest.raises(ConfigError, match="the data does not have captions"):
            m.latents_and_conditions(wrong)
    with pytest.raises(ConfigError, match=r"--model.guidance must be two numbers"):
        LatentConsistencyDistillation(TextToImageBase(tiny_sd()), LoRA(4), (3.0, 1.0))
    with pytest.raises(ConfigError, match="do not divide 1000"):
        LatentConsistencyDistillation(TextToImageBase(tiny_sd()), LoRA(4), timesteps=30)
