import pytest
import torch
from safetensors.torch import load_file

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.embedding import FourierEmbedding, SinusoidEmbedding, TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.backbones.unet2d import DiffusersUNet
from cm_lightning.callbacks.ema import EMA
from cm_lightning.commands import export
from cm_lightning.core.parameterization import BoundaryShifted, Trigonometric
from cm_lightning.errors import ConfigError
from cm_lightning.modules.continuous import ContinuousConsistencyTraining
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining
from tests.backbones.zoo import unet2d
from tests.helpers import images, trainer

SHAPE = (3, 8, 8)


def adm(num_classes, **options):
    sizes = {"channels": 128, "multipliers": (1, 1), "blocks": 1, "attention_levels": (1,)}
    return ADM(**{**sizes, "num_classes": num_classes, **options})


def module(backbone, scale=250.0):
    for p in backbone.parameters():
        torch.nn.init.normal_(p, std=0.05 if p.ndim > 1 else 0.3)
    return ConsistencyTraining(backbone, SHAPE, parameterization=BoundaryShifted(noise_scale=scale)).eval()


def write(monkeypatch, m, kind, folder):
    """Write by the function of the command, without a checkpoint."""
    monkeypatch.setattr("cm_lightning.modules.loading.load_module", lambda *_: m)
    monkeypatch.setattr(export, "_origin", lambda *_: (7, "averaged"))
    export.main(
        [f"--ckpt_path={folder}/x.ckpt", f"--format={kind}", f"--output={folder}", "--license=mit", "--overwrite"]
    )


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("scale", [250.0, 0.25])
@pytest.mark.parametrize(
    "make",
    [
        adm,
        lambda n: adm(n, scale_shift=False),
        lambda n: adm(n, channels=32, norm_groups=32, multipliers=(2, 2)),
        lambda n: adm(n, noise_embedding=FourierEmbedding(128, 0.001 if n else 0.02)),
        unet2d,
    ],
)
def test_diffusers_samples_are_ours(make, scale, num_classes, tmp_path, monkeypatch, capsys):
    from diffusers import ConsistencyModelPipeline

    backbone = make(num_classes)
    if isinstance(backbone, DiffusersUNet) and scale != 250:
        backbone = DiffusersUNet({**backbone.network.config, "block_out_channels": (32, 64)})
    if scale == 250 and isinstance(backbone, ADM) and isinstance(backbone.conditioning.noise, FourierEmbedding):
        pytest.skip("Fourier features of 250 ln sigma are not diffusers'")
    m = module(backbone, scale)
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

    m = module(make(num_classes), 0.25)
    write(monkeypatch, m, "onnx", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx", providers=["CPUExecutionProvider"])
    z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))  # not the batch it was traced with
    labels = torch.tensor([0, 2, 1])
    inputs = {"noise": z.numpy()} | ({"class_label": labels.numpy()} if num_classes else {})
    (drawn,) = session.run(["image"], inputs)
    expected = m.sample(3, 1, labels if num_classes else None, torch.Generator().manual_seed(0), [80.0])
    torch.testing.assert_close(torch.from_numpy(drawn), expected, rtol=0, atol=1e-4)


SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,), "head_width": 8, "num_classes": 3}
#: The methods on other paths: their networks take ln sigma, t itself, or two times.
OTHER_PATHS = {
    "sCT, ln sigma": lambda: ContinuousConsistencyTraining(UNet(**SMALL), SHAPE),
    "sCT, t": lambda: ContinuousConsistencyTraining(
        UNet(**SMALL, noise_embedding=SinusoidEmbedding(8)), SHAPE, parameterization=Trigonometric(noise_scale=None)
    ),
    "MeanFlow": lambda: MeanFlow(UNet(**SMALL, noise_embedding=TwoTimesEmbedding(8)), SHAPE),
}


@pytest.mark.parametrize("name", OTHER_PATHS)
def test_methods_on_other_paths_are_written_and_read(name, tmp_path, monkeypatch):
    import onnxruntime

    m = OTHER_PATHS[name]().eval()
    for p in m.backbone.parameters():
        torch.nn.init.normal_(p, std=0.05 if p.ndim > 1 else 0.3)
    labels = torch.tensor([0, 2, 1])

    def drawn(module, steps=1):
        return module.sample(3, steps, labels, torch.Generator().manual_seed(0))

    write(monkeypatch, m, "onnx", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx/generator.onnx", providers=["CPUExecutionProvider"])
    z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    (image,) = session.run(["image"], {"noise": z.numpy(), "class_label": labels.numpy()})
    torch.testing.assert_close(torch.from_numpy(image), drawn(m), rtol=0, atol=1e-4)
    assert drawn(m).std() > 0.05

    write(monkeypatch, m, "safetensors", tmp_path / "tensors")
    monkeypatch.undo()
    back = load_module(str(tmp_path / "tensors"))
    assert type(back) is type(m)
    for steps in (1, 2):
        assert torch.equal(drawn(back, steps), drawn(m, steps))


@pytest.mark.parametrize("name", ["sCT, t", "MeanFlow"])
def test_a_pipeline_of_diffusers_needs_ln_sigma(name, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="gives the network ln sigma, but this network takes another time: give --f"):
        write(monkeypatch, OTHER_PATHS[name](), "diffusers", tmp_path)


@pytest.mark.parametrize("scale", [250.0, 0.25])
def test_a_continuous_time_model_is_a_consistency_model_of_diffusers(scale, tmp_path, monkeypatch):
    """On the TrigFlow path f has EDM's scalings in units of VE, as the scheduler has them with sigma_min = 0."""
    from diffusers import ConsistencyModelPipeline

    own = Trigonometric(noise_scale=scale)
    m = ContinuousConsistencyTraining(module(adm(3)).backbone, SHAPE, parameterization=own).eval()
    write(monkeypatch, m, "diffusers", tmp_path)
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    for steps, how in ((1, {"num_inference_steps": 1}), (2, {"num_inference_steps": None, "timesteps": [22, 0]})):
        options = {**how, "class_labels": [2, 0], "generator": torch.Generator().manual_seed(3)}
        theirs = 2 * pipeline(batch_size=2, output_type="pt", **options).images - 1
        sigmas = [80.0, *pipeline.scheduler.sigmas[1:steps].tolist()]
        ours = m.sample(2, labels=[2, 0], generator=torch.Generator().manual_seed(3), sigmas=sigmas)
        assert ours.std() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


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
