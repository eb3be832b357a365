import pytest
import torch
from safetensors.torch import load_file

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.embedding import FourierEmbedding, GuidedTimesEmbedding, JumpEmbedding, TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.backbones.unet2d import DiffusersUNet
from cm_lightning.callbacks.ema import EMA
from cm_lightning.commands import export
from cm_lightning.core.parameterization import BoundaryShifted, Trigonometric
from cm_lightning.errors import ConfigError
from cm_lightning.modules.continuous import ContinuousConsistencyTraining
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.guided_mean_flow import GuidedMeanFlow
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining
from cm_lightning.modules.trajectory_distillation import TrajectoryDistillation
from tests.backbones.zoo import awake, unet2d
from tests.helpers import images, trainer

SHAPE = (3, 8, 8)


def adm(num_classes, **options):
    sizes = {"channels": 128, "multipliers": (1, 1), "blocks": 1, "attention_levels": (1,)}
    return ADM(**{**sizes, "num_classes": num_classes, **options})


def module(backbone, scale=250.0, **options):
    for p in backbone.parameters():
        torch.nn.init.normal_(p, std=0.05 if p.ndim > 1 else 0.3)
    return ConsistencyTraining(backbone, SHAPE, parameterization=BoundaryShifted(noise_scale=scale), **options).eval()


def write(monkeypatch, m, kind, folder):
    """Write by the function of the command, without a checkpoint."""
    monkeypatch.setattr("cm_lightning.modules.loading.load_trained", lambda *_: m)
    monkeypatch.setattr(export, "_origin", lambda *_: (7, "averaged"))
    export.main(
        [f"--ckpt_path={folder}/x.ckpt", f"--format={kind}", f"--output={folder}", "--license=mit", "--overwrite"]
    )


def unshifted(n):
    return adm(n, scale_shift=False)


def narrow(n):
    return adm(n, channels=32, norm_groups=32, multipliers=(2, 2))


def fourier(n):
    return adm(n, noise_embedding=FourierEmbedding(128, 0.001 if n else 0.02))


def narrow_unet2d(n):
    return DiffusersUNet({**unet2d(n).network.config, "block_out_channels": (32, 64)})


@pytest.mark.parametrize(
    ("make", "scale", "num_classes"),
    [
        (adm, 250.0, 0), (adm, 250.0, 3), (adm, 0.25, 0), (adm, 0.25, 3),
        (unshifted, 250.0, 0), (unshifted, 0.25, 3),
        (narrow, 250.0, 3), (narrow, 0.25, 0),
        (fourier, 0.25, 0), (fourier, 0.25, 3),  # Fourier features of 250 ln sigma are not diffusers'
        (unet2d, 250.0, 3), (narrow_unet2d, 0.25, 0),
    ],
)  # fmt: skip
def test_diffusers_samples_are_ours(make, scale, num_classes, tmp_path, monkeypatch, capsys):
    from diffusers import ConsistencyModelPipeline

    m = module(make(num_classes), scale)
    write(monkeypatch, m, "diffusers", tmp_path)
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    label = [2, 0] if num_classes else None
    for steps, how in ((1, {"num_inference_steps": 1}), (2, {"num_inference_steps": None, "timesteps": [22, 0]})):
        options = {**how, "class_labels": label, "generator": torch.Generator().manual_seed(3)}
        theirs = 2 * pipeline(batch_size=2, output_type="pt", **options).images - 1
        sigmas = pipeline.scheduler.sigmas[:steps].tolist()
        assert sigmas[0] == pytest.approx(80)
        sigmas[0] = 80.0
        ours = m.sample(2, labels=label, generator=torch.Generator().manual_seed(3), sigmas=sigmas)
        assert ours.std() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)

    monkeypatch.undo()
    back = load_module(f"diffusers:{tmp_path}")
    again = back.sample(2, 1, labels=label, generator=torch.Generator().manual_seed(3))
    expected = m.sample(2, 1, labels=label, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [adm, lambda n: DDPMpp(3, 16, (1, 2), 1, (1,), n)])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_onnx_runtime_draws_what_we_draw(make, num_classes, tmp_path, monkeypatch):
    import onnxruntime

    m = module(make(num_classes), 0.25, contrast={1: 1.5})
    write(monkeypatch, m, "onnx", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx", providers=["CPUExecutionProvider"])
    z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))  # not the batch it was traced with
    labels = torch.tensor([0, 2, 1])
    inputs = {"noise": z.numpy()} | ({"class_label": labels.numpy()} if num_classes else {})
    (drawn,) = session.run(["image"], inputs)
    expected = m.sample(3, 1, labels if num_classes else None, torch.Generator().manual_seed(0), [80.0])
    torch.testing.assert_close(torch.from_numpy(drawn), expected, rtol=0, atol=1e-4)


def sct(noise_scale, backbone=None):
    return ContinuousConsistencyTraining(
        awake(backbone or UNet(3, 8, (1, 2), 1, num_classes=3, head_width=8)),
        SHAPE,
        parameterization=Trigonometric(noise_scale=noise_scale),
    ).eval()


def unet(embedding):
    return awake(UNet(3, 8, (1, 2), 1, num_classes=3, head_width=8, noise_embedding=embedding))


def mean_flow():
    return MeanFlow(unet(TwoTimesEmbedding(8)), SHAPE).eval()


def guided_mean_flow():
    return GuidedMeanFlow(unet(GuidedTimesEmbedding(8)), SHAPE).eval()


def ctm():
    return TrajectoryDistillation(unet(JumpEmbedding(8)), SHAPE, "teacher.ckpt").eval()


NEWER = pytest.mark.parametrize(
    "make",
    [lambda: sct(0.25), lambda: sct(None), mean_flow, guided_mean_flow, ctm],
    ids=["sCT of ln sigma", "sCT of t", "MeanFlow", "guided iMF", "CTM"],
)


def draw(m, steps=1):
    return m.sample(3, steps, [0, 2, 1], torch.Generator().manual_seed(0))


@NEWER
def test_newer_methods_are_rebuilt_to_the_bit(make, tmp_path, monkeypatch):
    m = make()
    write(monkeypatch, m, "safetensors", tmp_path)
    monkeypatch.undo()
    back = load_module(str(tmp_path))
    assert type(back) is type(m)
    for steps in (1, 2):
        assert draw(m, steps).std() > 0.05
        torch.testing.assert_close(draw(back, steps), draw(m, steps), rtol=0, atol=0)


@NEWER
def test_onnx_runtime_draws_what_newer_methods_draw(make, tmp_path, monkeypatch):
    import onnxruntime

    m = make()
    write(monkeypatch, m, "onnx", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx", providers=["CPUExecutionProvider"])
    z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    (drawn,) = session.run(["image"], {"noise": z.numpy(), "class_label": torch.tensor([0, 2, 1]).numpy()})
    assert draw(m).std() > 0.05
    torch.testing.assert_close(torch.from_numpy(drawn), draw(m), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "scale"),
    [(adm, 0.25), (adm, 250.0), (lambda n: unet2d(n, forward_mode=True), 250.0)],
)
def test_diffusers_draws_what_sct_draws(make, scale, tmp_path, monkeypatch):
    from diffusers import ConsistencyModelPipeline

    m = module(make(0), scale)
    m = ContinuousConsistencyTraining(m.backbone, SHAPE, parameterization=Trigonometric(noise_scale=scale)).eval()
    write(monkeypatch, m, "diffusers", tmp_path)
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    theirs = 2 * pipeline(batch_size=2, num_inference_steps=1, output_type="pt", generator=generator).images - 1
    ours = m.sample(2, 1, generator=torch.Generator().manual_seed(3))
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [lambda: sct(None, adm(0)), mean_flow, ctm])
def test_diffusers_has_no_pipeline_for_another_time(make, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="ln sigma, but this network takes another time: give --format onnx"):
        write(monkeypatch, make(), "diffusers", tmp_path)


def test_the_averaged_weights_and_a_card_from_a_checkpoint(tmp_path):
    sizes = {"channels": 16, "multipliers": [1], "blocks": 1, "attention_levels": []}
    ema = EMA(0.5)
    m = ConsistencyTraining(DDPMpp(**sizes), SHAPE)
    m.config = {
        "class_path": "cm_lightning.modules.training.ConsistencyTraining",
        "init_args": {
            "image_shape": list(SHAPE),
            "backbone": {"class_path": "cm_lightning.backbones.ddpmpp.DDPMpp", "init_args": sizes},
        },
    }
    t = trainer(tmp_path, max_steps=2, callbacks=[ema])
    t.fit(m, images(SHAPE))
    t.save_checkpoint(tmp_path / "x.ckpt")
    export.main([f"--ckpt_path={tmp_path}/x.ckpt", "--format=safetensors", f"--output={tmp_path}/out"])
    torch.testing.assert_close(load_file(tmp_path / "out/weights.safetensors"), ema.average, rtol=0, atol=0)
    card = (tmp_path / "out/README.md").read_text()
    for line in (
        "license: unknown",
        "| method | ConsistencyTraining |",
        "| training steps | 2 |",
        "| weights | averaged |",
        "| data | not recorded |",
        "| metrics | not recorded |",
    ):
        assert line in card


def test_what_a_format_cannot_hold_is_named(tmp_path, monkeypatch):
    heads = {"channels": 64, "multipliers": (1, 2), "head_width": 128, "norm_groups": 32, "attention_levels": (0, 1)}
    refused = [
        (module(adm(0, noise_embedding=FourierEmbedding(128)), 0.25), "diffusers", "changes too quickly with sigma"),
        (module(unet2d(0), 0.25), "diffusers", "has too few channels"),
        (module(adm(0), contrast={1: 1.5}), "diffusers", "cannot apply the contrast .* give --format onnx"),
        (module(DDPMpp(3, 16, (1, 2), 1, (1,))), "diffusers", "diffusers has no DDPMpp: networks of the classes ADM"),
        (module(UNet(3, 32)), "diffusers", "diffusers has no UNet: .* give --format onnx or --format safetensors"),
        (module(adm(0, channels=32)), "diffusers", "set norm_groups, or channels of at least 128"),
        (
            module(adm(0, **heads)),
            "diffusers",
            "all its heads have 64 channels",
        ),
        (DiffusionModule(adm(0), SHAPE), "onnx", "takes a one-step model, but this is a DiffusionModule"),
    ]
    for m, kind, words in refused:
        with pytest.raises(ConfigError, match=words):
            write(monkeypatch, m, kind, tmp_path)
