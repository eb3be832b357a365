"""Modules from files: built in Python, exported, compiled, or in the wrappers of another program."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.embedding import FourierEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.callbacks.ema import EMA
from cm_lightning.checkpoint import CONFIG_KEY, read_checkpoint, weights
from cm_lightning.commands import export
from cm_lightning.core.curriculum import ConstantLevels, GridCurriculum
from cm_lightning.core.distance import L2
from cm_lightning.core.noise import LogNormal
from cm_lightning.core.ode_sampler import Euler
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.interop.foreign import read_foreign
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.training import ConsistencyTraining
from cm_lightning.recording import UNRECORDED, Recorded, describe
from tests.helpers import images, points, trainer
from tests.interop.test_edm import reference as edm
from tests.interop.test_openai import SIZES
from tests.interop.test_openai import reference as openai

SHAPE = (3, 8, 8)


class Plain(nn.Module):
    """A user's network with a constructor without arguments."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, noise_label, class_label=None):
        return self.layer(x)


class Sized(Plain):
    """A network that does not record its arguments."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2))


class Remembered(Recorded, Sized):
    """A network that records its arguments."""

    def __init__(self, width, *, bias=0.0):
        super().__init__(width)
        self.bias = bias


def saved(m, tmp_path, data=None, **options):
    t = trainer(tmp_path, max_steps=1, **options)
    t.fit(m, data or points())
    t.save_checkpoint(tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def draw(m, **options):
    return m.sample(4, generator=torch.Generator().manual_seed(3), **options)


def adm(**options):
    sizes = {"channels": 32, "multipliers": (1, 1), "blocks": 1, "attention_levels": (), "norm_groups": 32}
    return ADM(**{**sizes, **options})


def nested():
    return ConsistencyTraining(
        adm(num_classes=3, noise_embedding=FourierEmbedding(32, scale=0.02)),
        image_shape=SHAPE,
        curriculum=GridCurriculum(ConstantLevels(7)),
        distance=L2(),
        parameterization=BoundaryShifted(0.4, noise_scale=0.5),
        target_rate=ConstantRate(0.5),
        sampling_sigmas={2: (80.0, 1.5)},
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        label_dropout=0.1,
        contrast={1: 1.5},
    )


def test_a_module_built_in_python_is_built_again_with_all_its_parts(tmp_path):
    m = nested()
    path = saved(m, tmp_path, images(SHAPE, classes=3))
    again = load_module(path)
    assert torch.equal(draw(again, steps=2), draw(m, steps=2))
    assert (again.parameterization.sigma_data, again.parameterization.noise_scale) == (0.4, 0.5)
    assert (again.sampling_sigmas, again.label_dropout, again.contrast) == ({2: [80.0, 1.5]}, 0.1, {1: 1.5})
    assert again.objective.curriculum.levels.n == 7
    assert again.target_network.rate.mu == 0.5
    assert type(again.objective.distance) is L2


def test_a_diffusion_module_and_its_sampler(tmp_path):
    m = DiffusionModule(ResidualMLP(2, 8, 1), (2,), density=LogNormal(-1.0, 2.0), sampler=Euler())
    again = load_module(saved(m, tmp_path))
    assert type(again.sampler) is Euler
    assert (again.density.mean, again.density.std) == (-1.0, 2.0)
    assert torch.equal(draw(again, steps=3), draw(m, steps=3))


def test_a_teacher_given_in_python_is_not_needed_to_sample(tmp_path):
    teacher = DiffusionModule(ResidualMLP(2, 8, 1), (2,))
    path = saved(ConsistencyDistillation(ResidualMLP(2, 8, 1), (2,), teacher), tmp_path)
    assert draw(load_module(path)).shape == (4, 2)
    with pytest.raises(CheckpointError, match="the teacher that was given in Python"):
        _ = load_module(path).teacher
    assert load_module(path, teacher=teacher).teacher is teacher


@pytest.mark.parametrize("make", [Plain, lambda: Remembered(3, bias=0.5)], ids=["no arguments", "remembered"])
def test_a_network_of_one_s_own_is_built_where_it_is_trusted(make, tmp_path):
    m = ConsistencyTraining(make(), (2,))
    path = saved(m, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"names the class tests\.interop.*--trust tests .*load_module\(PATH, trust"
    ):
        load_module(path)
    again = load_module(path, trust=["tests"])
    assert torch.equal(draw(again), draw(m))
    assert getattr(again.backbone, "bias", None) == getattr(m.backbone, "bias", None)
    assert torch.equal(draw(load_module(path, backbone=make())), draw(m))


def test_a_network_that_remembers_nothing_is_given(tmp_path):
    m = ConsistencyTraining(Sized(3), (2,))
    path = saved(m, tmp_path)
    with pytest.raises(CheckpointError, match=r"does not hold the arguments of tests.*Sized.*backbone="):
        load_module(path, trust=["tests"])
    assert torch.equal(draw(load_module(path, backbone=Sized(3))), draw(m))
    with pytest.raises(
        CheckpointError, match=r"2 tensors of another shape, first backbone\.layer\.0\.weight: \(3, 2\) in"
    ):
        load_module(path, backbone=Sized(5).requires_grad_(False)) if False else load_module(path, backbone=_wider())


def _wider():
    network = Sized(3)
    network.layer[0] = nn.Linear(3, 3)
    network.layer[1] = nn.Linear(3, 3, bias=False)
    network.layer[1].bias = nn.Parameter(torch.zeros(2))
    return network


def test_the_command_line_s_configuration_wins(tmp_path):
    m = ConsistencyTraining(ResidualMLP(2, 8, 1), (2,))
    m.config = {"class_path": "the.command.lines", "init_args": {}}
    assert read_checkpoint(saved(m, tmp_path))[CONFIG_KEY] == m.config


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (None, None),
        (True, True),
        ((1, 2.5, "a"), [1, 2.5, "a"]),
        (torch.Size([2, 3]), [2, 3]),
        ({2: (80.0,)}, {2: [80.0]}),
        (L2(), {"class_path": "cm_lightning.core.distance.L2", "init_args": {}}),
        (ConstantLevels(3), {"class_path": "cm_lightning.core.curriculum.ConstantLevels", "init_args": {"n": 3}}),
        (Sized(2), {"class_path": "tests.interop.test_loading.Sized", UNRECORDED: True}),
        (nn.Linear(2, 2), {"class_path": "torch.nn.modules.linear.Linear", UNRECORDED: True}),
        (torch.relu, {"class_path": "torch.relu", UNRECORDED: True}),
    ],
)
def test_what_is_told_of_a_value(value, described):
    assert describe(value) == described or described[UNRECORDED] == describe(value)[UNRECORDED]


@pytest.mark.parametrize("of", [lambda out: out, lambda out: out / "weights.safetensors"], ids=["folder", "file"])
def test_the_export_of_weights_draws_what_the_checkpoint_draws(of, tmp_path):
    path = saved(nested(), tmp_path, images(SHAPE, classes=3), callbacks=[EMA(0.5)])
    export.main([f"--ckpt_path={path}", "--format=safetensors", f"--output={tmp_path / 'out'}"])
    config = json.loads((tmp_path / "out/config.json").read_text())
    arguments = config["cm_lightning_module"]["init_args"]
    assert arguments["parameterization"]["init_args"] == {"sigma_data": 0.4, "sigma_min": 0.002, "noise_scale": 0.5}
    assert not {"optimizer", "lr_scheduler", "start_from"} & arguments.keys()
    assert (config["steps"], config["weights"]) == (1, "averaged")
    again = load_module(of(tmp_path / "out"))
    assert torch.equal(draw(again, steps=2), draw(load_module(path), steps=2))
    started = nested()
    started.start_from = str(tmp_path / "out")
    started.setup("fit")
    torch.testing.assert_close(started.backbone.state_dict(), again.backbone.state_dict(), rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"--weights raw: .* holds one kind of weights"):
        load_module(tmp_path / "out", "raw")
    export.main([f"--ckpt_path={tmp_path / 'out'}", "--format=safetensors", f"--output={tmp_path / 'two'}"])
    assert "| weights | averaged |" in (tmp_path / "two/README.md").read_text()
    (tmp_path / "out/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json beside it that describes its network"):
        load_module(of(tmp_path / "out"))


def test_the_output_of_export_is_checked_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/weights.safetensors").write_text("mine")
    for output, words in (
        ("file", "cannot be written to"),
        ("file/below", "cannot be written to"),
        ("full", "--overwrite"),
    ):
        with pytest.raises(ConfigError, match=f"--output .*{words}"):
            export.main(["--ckpt_path=missing.ckpt", "--format=onnx", f"--output={tmp_path / output}"])
    assert (tmp_path / "full/weights.safetensors").read_text() == "mine"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        export.main(["--ckpt_path=missing.ckpt", "--format=onnx", f"--output={tmp_path / 'full'}", "--overwrite"])


def test_a_compiled_network_s_checkpoint_fits_an_uncompiled_one_and_back(tmp_path):
    compiled = torch.compile(ResidualMLP(2, 8, 1), backend="eager")
    plain = ConsistencyTraining(ResidualMLP(2, 8, 1), (2,))
    for m, name in ((ConsistencyTraining(compiled, (2,)), "compiled"), (plain, "plain")):
        (tmp_path / name).mkdir()
        saved(m, tmp_path / name, callbacks=[EMA(0.5)])
    assert "backbone._orig_mod.head.weight" in str(
        list(read_checkpoint(tmp_path / "compiled/x.ckpt")["state_dict"])
    ) or (any("_orig_mod" in n for n in read_checkpoint(tmp_path / "compiled/x.ckpt")["state_dict"]))
    for source in ("compiled", "plain"):
        path = tmp_path / source / "x.ckpt"
        assert draw(load_module(path)).shape == (4, 2)
        ResidualMLP(2, 8, 1).load_state_dict(weights(read_checkpoint(path), "raw"))
        for network in (torch.compile(ResidualMLP(2, 8, 1), backend="eager"), ResidualMLP(2, 8, 1)):
            m = ConsistencyTraining(network, (2,), start_from=str(path))
            ema = EMA(0.5)
            trainer(tmp_path, max_steps=2, callbacks=[ema]).fit(m, points(), ckpt_path=path)
            assert set(ema.average) == set(network.state_dict())


WRAPPED = {
    "module": lambda state: {f"module.{n}": t for n, t in state.items()},
    "compiled": lambda state: {f"_orig_mod.{n}": t for n, t in state.items()},
    "ddp of compiled": lambda state: {f"module._orig_mod.{n}": t for n, t in state.items()},
    "model": lambda state: {f"model.{n}": t for n, t in state.items()},
    "ema": lambda state: {f"ema.{n}": t for n, t in state.items()},
    "both": lambda state: {f"ema.{n}": t for n, t in state.items()} | {f"model.{n}": 0 * t for n, t in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "in model": lambda state: {"model": state, "step": 3, "optimizer": {"state": {}}},
    "in ema": lambda state: {"ema": state, "model": {n: 0 * t for n, t in state.items()}},
    "twice": lambda state: {"state_dict": {f"model.module.{n}": t for n, t in state.items()}},
    "deeper": lambda state: {"model": {"state_dict": {f"_orig_mod.{n}": t for n, t in state.items()}}},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("program", ["openai", "edm"])
def test_networks_of_others_are_read_through_wrappers(program, wrapper, tmp_path):
    state = dict((openai(**SIZES[3]) if program == "openai" else edm("ddpmpp")).state_dict())
    torch.save(state, tmp_path / "plain.pt")
    torch.save(WRAPPED[wrapper](state), tmp_path / "x.pt")
    expected = read_foreign(f"{program}:{tmp_path / 'plain.pt'}").backbone.state_dict()
    torch.testing.assert_close(
        read_foreign(f"{program}:{tmp_path / 'x.pt'}").backbone.state_dict(), expected, rtol=0, atol=0
    )


def test_a_file_of_others_without_its_prefix_is_recognised(tmp_path):
    torch.save(openai(**SIZES[3]).state_dict(), tmp_path / "o.pt")
    torch.save({"ema": edm("ddpmpp").state_dict()}, tmp_path / "e.pt")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/config.json").write_text('{"_class_name": "UNet2DModel"}')
    for name, prefix in (("o.pt", "openai:"), ("e.pt", "edm:"), ("d", "diffusers:")):
        with pytest.raises(CheckpointError, match=f"it looks like .*: give {prefix}.*{name}"):
            load_module(tmp_path / name)


def test_what_differs_is_told(tmp_path):
    path = saved(ConsistencyTraining(ResidualMLP(2, 8, 1), (2,)), tmp_path, callbacks=[EMA(0.5)])
    wide = ConsistencyTraining(ResidualMLP(2, 16, 1), (2,), start_from=str(path))
    with pytest.raises(
        CheckpointError, match=r"start_from: .*\d+ tensors of another shape, first .*: \(4,\) in the file, \(8,\)"
    ):
        wide.setup("fit")
    with pytest.raises(CheckpointError, match=r"do not fit this model: .*tensors of another shape, first backbone\."):
        wide.load_state_dict(read_checkpoint(path)["state_dict"])
    with pytest.raises(CheckpointError, match=r"tensors missing, first backbone\..*; .* left over, first cat"):
        wide.load_state_dict({"cat": torch.zeros(1)})


def test_the_published_weights_file_alone_is_the_network(tmp_path):
    path = saved(ConsistencyTraining(ResidualMLP(2, 8, 1), (2,)), tmp_path)
    export.main([f"--ckpt_path={path}", "--format=safetensors", f"--output={tmp_path / 'out'}"])
    ResidualMLP(2, 8, 1).load_state_dict(load_file(tmp_path / "out/weights.safetensors"))
