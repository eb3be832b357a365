"""Numbers out of range are refused where they are set, in a line that names class and option."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import cm_lightning.backbones
import cm_lightning.core
import cm_lightning.modules
from cm_lightning.backbones.adm import ADM
from cm_lightning.backbones.attention import SelfAttention
from cm_lightning.backbones.ddpmpp import DDPMpp
from cm_lightning.backbones.dit import DiT
from cm_lightning.backbones.edm2 import EDM2
from cm_lightning.backbones.embedding import JumpEmbedding, PositionalEmbedding, SinusoidEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.ncsnpp import NCSNpp
from cm_lightning.backbones.pyramid import Style
from cm_lightning.backbones.unet import UNet
from cm_lightning.commands.sample import main as sample
from cm_lightning.core import (
    curriculum,
    dyadic_times,
    gap,
    halving,
    limit_times,
    noise,
    ode_sampler,
    oracle,
    parameterization,
    soft_consistency,
    target_rate,
    truncated,
    weighting,
)
from cm_lightning.core.distance import PseudoHuber
from cm_lightning.core.objective import Tangent
from cm_lightning.core.path import VE
from cm_lightning.core.residual import Adaptive, Learned
from cm_lightning.core.sampler import spread_sigmas
from cm_lightning.core.schedule import HoldThenCosine, Ramp
from cm_lightning.core.stages import Stage
from cm_lightning.core.trajectory import SameNoise
from cm_lightning.data.mnist import MNIST
from cm_lightning.data.toy import Toy
from cm_lightning.device import chosen_device
from cm_lightning.domains import BELOW_ONE, COUNT, INNER, POSITIVE, SEED, SHARE, check_ascending, multiple_of
from cm_lightning.errors import ConfigError
from cm_lightning.images import sheet
from cm_lightning.latent.student import LoRA, WholeUNet
from cm_lightning.modules.autoencoder import AutoencoderModule
from cm_lightning.modules.contrastive import ContrastiveModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.training import ConsistencyTraining

#: What makes a class whose other parameters lack a default.
GIVEN: dict[str, Any] = {
    "levels": curriculum.ProgressiveLevels(),
    "then": curriculum.ContinuousCurriculum(),
    "backbone": ResidualMLP(width=8, depth=1),
    "image_shape": (2,),
    "width": 8,
    "channels": 8,
    "head_width": None,
    "channels_in": 8,
    "channels_out": 8,
    "means": torch.zeros(1, 2),
    "centres": torch.zeros(1, 2),
    "half": 0.5,
    "stds": torch.ones(1),
    "condition": 8,
    "dropout": 0.0,
    "forward_mode": False,
    "scale_shift": True,
    "teacher": "teacher.ckpt",
    "resampling": "keep",
    "curriculum": curriculum.ContinuousCurriculum(),
    "distance": PseudoHuber(),
    "weighting": weighting.Uniform(),
    "base": None,
    "student": None,
    "trajectory": SameNoise(),
    "denoiser": lambda x, t, c: x,
    "objective": Tangent(limit_times.OneTime(), SameNoise()),
    "first": Tangent(limit_times.OneTime(), SameNoise()),
    "rest": Tangent(limit_times.OneTime(), SameNoise()),
    "start_from": "first.ckpt",
    "teacher_steps": 2,
    "student_steps": 1,
    "stages": [Stage(2, 1)],
    "network": ResidualMLP(width=8, depth=1),
    "null": 3,
    "gamma": 0.5,
    "path": VE(),
}


#: Options that are not the suite's to check, and why.
EXCEPTIONS = {
    ("ClassTable", "norm_type"): "an option of torch's, which ClassTable inherits and is never given",
    ("PyramidNet", "groups"): "a base, whose networks check their norm_groups before",
}


def takes_a_number(parameter: inspect.Parameter) -> bool:
    """Whether an option has a default, and is a number or None."""
    numeric = isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
    return numeric or (parameter.default is None and parameter.annotation in ("int | None", "float | None"))


def numeric_options() -> Iterator[Any]:
    """Each (class, option) with a number as default, of all public classes of the suite's methods and networks."""
    for package in (cm_lightning.core, cm_lightning.backbones, cm_lightning.modules):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for name, kind in inspect.getmembers(module, inspect.isclass):
                if kind.__module__ != found.name or name.startswith("_") or inspect.isabstract(kind):
                    continue
                for option, parameter in inspect.signature(kind).parameters.items():
                    if takes_a_number(parameter) and (name, option) not in EXCEPTIONS:
                        yield pytest.param(kind, option, id=f"{name}-{option}")


@pytest.mark.parametrize(("kind", "option"), list(numeric_options()))
def test_no_class_takes_a_number_without_meaning(kind, option):
    parameters = inspect.signature(kind).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    given = {name: GIVEN[name] for name in required}
    for bad in (math.nan, math.inf, "many", True):
        with pytest.raises(ConfigError, match=rf"^{kind.__name__}: {option} must be .*, got"):
            kind(**given, **{option: bad})
    if option != "mean":  # of a logarithm, which may be any number
        with pytest.raises(ConfigError, match=rf"^{kind.__name__}: {option} must be .*, got -1"):
            kind(**given, **{option: -(10**9)})


def test_the_walk_finds_what_there_is():
    names = {parameter.id for parameter in numeric_options()}
    assert {"UNet-dropout", "LogNormal-std", "PseudoHuber-c", "LatentConsistencyDistillation-scaling"} <= names
    assert len(names) > 70


NETWORK = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,)}
NETWORKS = (UNet, DDPMpp, NCSNpp, ADM, EDM2)


def ct(**options):
    return ConsistencyTraining(ResidualMLP(width=8, depth=1, num_classes=3), **{"image_shape": (2,), **options})


@pytest.mark.parametrize(
    ("make", "option", "bad", "good"),
    [
        (parameterization.EDM, "sigma_data", [0, -0.5], [1e-3, 1]),
        (parameterization.EDM, "noise_scale", [0, -1], [250, 0.25]),
        (parameterization.BoundaryShifted, "sigma_min", [-1, -1e-9], [0, 0.002]),
        (weighting.InverseVariance, "sigma_data", [0], [1]),
        (weighting.InverseGap, "power", [-1], [0, 1]),
        (noise.LogNormal, "std", [0, -1], [0.1, 2]),
        (noise.LogNormal, "sigma_min", [0, -1, 80, 81], [1e-5, 79]),
        (noise.LogNormal, "sigma_max", [0.002, 0.001, 0], [0.003, 100]),
        (noise.LogNormalIntervals, "std", [0, -1], [0.1]),
        (curriculum.ConstantLevels, "n", [1, 0, 2.0, "18"], [2, np.int64(18)]),
        (curriculum.ProgressiveLevels, "s0", [1, 0, 151], [2, 150]),
        (curriculum.DoublingLevels, "s0", [0, 1281, 10.0], [1, 1280]),
        (curriculum.DoublingLevels, "s1", [9, 0], [10]),
        (curriculum.ContinuousCurriculum, "stages", [0, -1, 1.5], [1]),
        (curriculum.ContinuousCurriculum, "q", [1, 0, -2], [1.001, 256]),
        (curriculum.ContinuousCurriculum, "k", [-1], [0]),
        (curriculum.ContinuousCurriculum, "b", [-1], [0]),
        (target_rate.ConstantRate, "mu", [1, -0.1, 1.5], [0, 0.999]),
        (PseudoHuber, "c", [-1, math.nan, "c"], [0, None, 1e-3]),
        (HoldThenCosine, "rise", [0, 1.5], [1]),
        (Ramp, "end", [-0.1, 1.5], [0, 1]),
        (lambda begin: Ramp(begin, 0.5), "begin", [0.6, -1], [0, 0.5]),
        (limit_times.TwoTimes, "different", [-0.1, 1.1], [0, 1]),
        (gap.ConstantGap, "p", [0, 1.1], [1e-3, 1]),
        (gap.ExponentialGap, "last", [0, 1.1], [1e-4, 1]),
        (gap.SigmoidGap, "lowest", [0, 1], [0.005]),
        (lambda end: gap.SigmoidGap(0.5, end), "end", [0.5, 0.4, 1.1], [0.51, 1]),
        (dyadic_times.DyadicTimes, "finest", [0, 1, 3, 96, 2.0], [2, 128]),
        (truncated.TruncatedCurriculum, "share", [0, 1], [0.25]),
        (truncated.TruncatedCurriculum, "ratio", [-0.1, 1], [0, 0.999]),
        (halving.HalvingLevels, "stages", [0, 6], [1, 5]),
        (halving.HalvingLevels, "steps", [0, 8, 24], [16, 32]),
        (noise.LogNormalAndHigh, "part", [0, 1.1], [0.1, 1]),
        (parameterization.DenoiserJump, "sigma_min", [0, -1], [0.002]),
        (soft_consistency.JumpTimes, "most", [0, 1.5], [1, 40]),
        (JumpEmbedding, "width", [0, 2, 7], [4, 8]),
        (noise.LogitNormal, "std", [0, -1], [0.1]),
        (Adaptive, "p", [-1], [0, 1]),
        (Learned, "width", [0, 1.5], [1]),
        (lambda low: SinusoidEmbedding(8, low=low), "low", [0, 8, 9], [0.1]),
        (HoldThenCosine, "hold", [-0.1, 1.1], [0, 1]),
        (HoldThenCosine, "drop", [-1], [0, 1]),
        (ode_sampler.Heun, "rho", [0, -7], [1, 7]),
        (ode_sampler.Euler, "sigma_min", [80, 0], [0.01]),
        (ode_sampler.DDIM, "sigma_max", [0, 0.01], [0.02, 157]),
        (lambda fraction: curriculum.WarmUp(curriculum.ContinuousCurriculum(), fraction), "fraction", [-1, 2], [0, 1]),
        (lambda mu0: target_rate.ProgressiveRate(curriculum.ProgressiveLevels(), mu0), "mu0", [0, 1, -1], [0.9]),
        (lambda label_dropout: ct(label_dropout=label_dropout), "label_dropout", [2, -0.1, math.nan], [0, 1]),
        (lambda image_shape: ct(image_shape=image_shape), "image_shape", [(), (0,), (2.0,), "2", 2], [(2,), [2]]),
        (lambda sigma_max: ct(sigma_max=sigma_max), "sigma_max", [0, -1, math.inf, 0.002, "80"], [80, 1.0]),
        (
            lambda sampling_sigmas: ct(sampling_sigmas=sampling_sigmas),
            "sampling_sigmas",
            [
                {2: [80.0]}, {1: [80.0, 1.0]}, {0: []}, {-1: [80.0]}, {1.5: [80.0]}, {1: []}, {2: [1.0, 80.0]},
                {2: [80.0, 80.0]}, {2: [80.0, 0]}, {2: [80.0, math.nan]}, {1: [math.inf]}, {1: ["80"]}, {1: "8"},
                {1: 80.0}, {"two": [80.0, 1.0]},
            ],
            [{}, None, {1: [80]}, {2: [80, 0.8], 3: (80, 8, 0.8)}],
        ),
        (LoRA, "rank", [0, 1.5, -4], [1]),
        (LoRA, "alpha", [0, -1, math.nan], [None, 8]),
        (WholeUNet, "guidance_width", [0, 2, 5, 256.0], [4, 256]),
        (lambda widths: AutoencoderModule(widths=widths), "widths", [(), (8, 4), (0,), 8], [(8, 16)]),
        (lambda heads: ContrastiveModule(width=16, layers=1, heads=heads), "heads", [0, 3, 1.0], [4]),
        (lambda patch: ContrastiveModule(width=16, layers=1, patch=patch), "patch", [0, 33], [32]),
        (MNIST, "batch_size", [0, -1, 1.5, "8", True], [1]),
        (MNIST, "num_workers", [-1, 0.5], [0, 2]),
        (Toy, "seed", [-1, 2**32, 0.5], [0, 2**32 - 1]),
        (Toy, "num_points", [0, 9], [10]),
        (spread_sigmas, "steps", [0, -1, 1.5], [1]),
        (PositionalEmbedding, "width", [0, 1, 7], [2, 8]),
        (ResidualMLP, "width", [0, 7, 8.0], [2]),
        (ResidualMLP, "num_classes", [-1, 0.5], [0, 3]),
        (lambda channels: DiT(channels=channels, blocks=1), "channels", [0, 6, 8.0], [8]),
        (lambda dropout: DiT(channels=8, blocks=1, dropout=dropout), "dropout", [1, 1.5], [0]),
        (lambda head_width: DiT(channels=28, blocks=1, head_width=head_width), "head_width", [0, -1, 5], [7, 64]),
        (lambda head_width: SelfAttention(28, head_width), "head_width", [0, 5], [None, 7]),
        (lambda scale: Style(8, 0.0, None, False, True, scale), "scale", [0], [1]),
        (lambda columns: sheet(torch.zeros(2, 1, 4, 4), columns), "columns", [0, -1, 1.5], [1]),
    ],
)  # fmt: skip
def test_options_end_at_their_boundaries(make, option, bad, good):
    for value in bad:
        with pytest.raises(ConfigError, match=option):
            make(**{option: value})
    for value in good:
        make(**{option: value})


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("option", "bad", "good"),
    [
        ("image_channels", [0, -3, 1.0, "3"], [1]),
        ("channels", [0, -8, 8.0], [8]),
        ("multipliers", [(), (0, 1), (1, -1), (1, 1.5), "12", 2], [(1, 1), [2, 1]]),
        ("blocks", [0, -1, 1.5], [1]),
        ("attention_levels", [(2,), (-1,), (0.5,), "1"], [(), (0, 1), [1]]),
        ("num_classes", [-1, 2.0], [0, 3]),
        ("dropout", [1.5, 1, -0.1, math.nan, "0.1"], [0, 0.5]),
    ],
)
def test_each_network_checks_its_sizes(kind, option, bad, good):
    for value in bad:
        with pytest.raises(ConfigError, match=f"^{kind.__name__}: .*{option}"):
            kind(**{**NETWORK, option: value})
    for value in good:
        kind(**{**NETWORK, option: value})


def test_the_oracle_needs_steps():
    with pytest.raises(ConfigError, match="MixtureOracle: steps must be"):
        oracle.MixtureOracle(torch.zeros(1, 2), torch.ones(1), steps=0)


@pytest.mark.parametrize(
    "levels", [(3, math.nan, 80.0, 7.0), (3, 0.1, math.inf, 7.0), (3, 0.1, 1.0, 0), (2.5, 0.1, 1, 7)]
)
def test_the_grid_needs_finite_numbers(levels):
    with pytest.raises(ConfigError, match="must be"):
        noise.karras_sigmas(*levels)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 0}, "^steps must be"),
        ({"steps": -1}, "^steps must be"),
        ({"steps": 1.5}, "^steps must be"),
        ({"steps": True}, "^steps must be"),
        ({"steps": 4, "sigmas": [80, 1]}, "steps and sigmas cannot be combined"),
        ({"sigmas": [math.nan]}, "^sigmas must be positive"),
        ({"sigmas": [math.inf, 1]}, "^sigmas must be positive"),
        ({"sigmas": [-1]}, "^sigmas must be positive"),
        ({"sigmas": [80, 80]}, "in descending order"),
        ({"sigmas": "80"}, "^sigmas must be"),
        ({"sigmas": 80.0}, "^sigmas must be"),
        ({"sigmas": [81]}, r"^sigmas must lie in 0.002 \.\.\. 80"),
        ({"sigmas": [80, 0.001]}, r"^sigmas must lie in 0.002 \.\.\. 80"),
        ({"labels": [1.7, 2]}, "^labels must be whole numbers"),
        ({"labels": [True, 2]}, "^labels must be whole numbers"),
        ({"labels": [True, False]}, "^labels must be whole numbers"),
        ({"labels": "12"}, "^labels must be whole numbers"),
        ({"labels": 4}, r"labels must lie in 0 \.\.\. 2"),
        ({"labels": -1}, r"labels must lie in 0 \.\.\. 2"),
        ({"n": 0}, "^n must be"),
        ({"n": 1.5}, "^n must be"),
    ],
)
def test_drawing_refuses(options, line):
    with pytest.raises(ConfigError, match=line):
        ct().sample(**{"n": 2, **options})


def test_drawing_takes_numbers_of_any_kind():
    module = ct()
    assert module.sample(2, sigmas=[80, 0.002], labels=np.array([0, 3])).shape == (2, 2)
    assert module.sample(2, steps=np.int64(2)).shape == (2, 2)
    levels = [float(level) for level in torch.tensor([80.0, 0.002])]  # not quite the double's
    assert module.sample(1, sigmas=levels).shape == (1, 2)


def test_a_diffusion_model_refuses_levels_that_it_was_not_trained_on():
    module = DiffusionModule(ResidualMLP(width=8, depth=1), (2,), density=noise.LogNormal(sigma_max=10.0))
    with pytest.raises(ConfigError, match=r"^sigmas must lie in 0.002 \.\.\. 10"):
        module.sample(1, sigmas=[80.0, 1.0])


COMMAND = "--ckpt_path=none.ckpt"
PROMPT = "--pipeline=none --prompt=a"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "give --ckpt_path, .* or --pipeline"),
        (f"{COMMAND} --sigmas nan", "--sigmas: must be a finite number above 0"),
        (f"{COMMAND} --sigmas inf", "--sigmas: must be"),
        (f"{COMMAND} --sigmas=-1", "--sigmas: must be"),
        (f"{COMMAND} --sigmas 0", "--sigmas: must be"),
        (f"{COMMAND} --sigmas 80,", "--sigmas: must be"),
        (f"{COMMAND} --sigmas=", "--sigmas: must be"),
        (f"{COMMAND} --sigmas 80,80", "--sigmas must descend"),
        (f"{COMMAND} --sigmas 1,80", "--sigmas must descend"),
        (f"{COMMAND} --sigmas 80,1 --steps 4", "--sigmas and --steps cannot be combined"),
        (f"{COMMAND} --steps 0", "--steps: must be a whole number of at least 1"),
        (f"{COMMAND} --steps=-1", "--steps"),
        (f"{COMMAND} --steps 1.5", "--steps"),
        (f"{COMMAND} --labels=", "--labels"),
        (f"{COMMAND} --labels 1,x", "--labels"),
        (f"{COMMAND} --labels=-1", "--labels"),
        (f"{COMMAND} --gamma 1.1", "--gamma: must be a number in"),
        (f"{COMMAND} --columns 0", "--columns"),
        (f"{COMMAND} --seed=-1", "--seed: must be a whole number from 0"),
        (f"{COMMAND} --seed 4294967296", "--seed"),
        (f"{COMMAND} --num_samples 0", "--num_samples"),
        (f"{COMMAND} --num_samples many", "--num_samples"),
        (f"{COMMAND} --batch_size 0", "--batch_size"),
        (f"{COMMAND} --output a.jpg", "--output a.jpg: give a .png"),
        (f"{COMMAND} --output /dev/null/a.png", "--output /dev/null/a.png"),
        (f"{COMMAND} --output /dev/null/folder", "--output /dev/null/folder"),
        (f"{COMMAND} --device nonsense", "--device nonsense"),
        (f"{COMMAND} --device meta", "--device meta cannot be used here"),
        (f"{COMMAND} --device cuda:99", "--device cuda:99 cannot be used here"),
        (f"{PROMPT} --guidance=-1", "--guidance: must be"),
        (f"{PROMPT} --guidance nan", "--guidance: must be"),
        (f"{PROMPT} --image=a.png --strength 0", r"--strength: must be a number in \(0, 1\]"),
        (f"{PROMPT} --image=a.png --strength 2", "--strength"),
        (f"{PROMPT} --image=a.png --strength nan", "--strength"),
        (f"{PROMPT} --strength 0.5", "--strength needs --image"),
        (f"{PROMPT} --image=a.png --strength 0.1", "makes less than one step"),
        (f"{PROMPT} --image=a.png --height 64", "--height and --width must be given together"),
        (f"{PROMPT} --height 7", "--height: must be a multiple of 8 above 0"),
        (f"{PROMPT} --height 0", "--height"),
        (f"{PROMPT} --width 65", "--width"),
        (f"{PROMPT} --lora x:nan", "--lora x:nan: give PATH or PATH:WEIGHT"),
        (f"{PROMPT} --lora x:inf", "--lora x:inf"),
        (f"{PROMPT} --negative_prompt b", "--negative_prompt has no effect without guidance"),
        (f"{PROMPT} --negative_prompt b --guidance 1", "--negative_prompt has no effect without guidance"),
        (f"{PROMPT} --steps 0", "--steps"),
        (f"{PROMPT} --seed=-1", "--seed"),
        (f"{PROMPT} --columns 0", "--columns"),
        (f"{PROMPT} --num_samples 0", "--num_samples"),
        (f"{PROMPT} --batch_size=-4", "--batch_size"),
        (f"{PROMPT} --output a.npz", "--output a.npz: give a .png"),
        (f"{PROMPT} --output /dev/null/a.png", "--output /dev/null/a.png"),
        (f"{PROMPT} --device nonsense", "--device nonsense"),
    ],
)
def test_sample_refuses_before_a_model_is_read(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, ConfigError)) as refused:
        sample(line.split())
    if isinstance(refused.value, SystemExit):
        assert refused.value.code == 2
    shown = capsys.readouterr().err if isinstance(refused.value, SystemExit) else str(refused.value)
    assert re.search(message, shown.splitlines()[0]), shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["--help", "-h", "--pipeline --help", "--pipeline none --help"])
def test_the_help_of_sample_shows_both_ways_of_use(line, capsys):
    sample(line.split())
    shown = capsys.readouterr().out
    assert "--ckpt_path" in shown
    assert "--negative_prompt" in shown


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:99", "-1", ""])
def test_a_device_must_be_there(name):
    with pytest.raises(ConfigError, match="--device"):
        chosen_device(name)
    assert chosen_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (POSITIVE, [1, 0.5, np.float32(2), np.int64(3), torch.tensor(1.0)], [0, math.nan, math.inf, True, "1", None]),
        (POSITIVE, [10**300], [10**400, -(10**400), np.float32("nan"), np.bool_(True), torch.ones(1), 1j]),
        (COUNT, [1, np.int64(2), torch.tensor(3)], [0, 1.0, np.float64(2), True, "1"]),
        (BELOW_ONE, [0, 0.5], [1, -0.1]),
        (INNER, [0.5], [0, 1]),
        (SHARE, [1, 0.1], [0, 1.1]),
        (SEED, [0, 2**32 - 1], [-1, 2**32]),
        (multiple_of(8), [8, 16], [0, 7, -8, 8.0]),
    ],
)  # fmt: skip
def test_domains(domain, inside, outside):
    assert [value for value in inside if value not in domain] == []
    assert [value for value in outside if value in domain] == []


def test_the_line_begins_with_the_class_if_there_is_one():
    with pytest.raises(ConfigError, match=r"^sigma must be a finite number above 0, got nan$"):
        POSITIVE.check(sigma=math.nan)
    with pytest.raises(ConfigError, match=r"^UNet: dropout must be a number in \[0, 1\), got 1\.5$"):
        UNet(**NETWORK, dropout=1.5)
    with pytest.raises(ConfigError, match=r"^low must be below high, got 2 and 1$"):
        check_ascending(low=2, high=1)
    with pytest.raises(ConfigError, match=r"^each of sizes must be a whole number of at least 1, got 0$"):
        COUNT.check_each(sizes=[1, 0])
