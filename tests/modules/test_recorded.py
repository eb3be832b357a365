"""Each method's first steps against values that were recorded when its step was a method of its own module.

The losses tell of the draws and of the formula, what the weights moved by in five steps tells of the gradients.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cm_lightning.backbones.unet import UNet
from cm_lightning.core.curriculum import (
    ConstantLevels,
    ContinuousCurriculum,
    DoublingLevels,
    GridCurriculum,
    ProgressiveLevels,
    WarmUp,
)
from cm_lightning.core.distance import L2, PseudoHuber
from cm_lightning.core.noise import LogNormalIntervals
from cm_lightning.core.target_rate import ConstantRate, ProgressiveRate
from cm_lightning.core.weighting import InverseVariance, Uniform
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from cm_lightning.modules.training import ConsistencyTraining
from tests.helpers import images, trainer

RECORDED = Path(__file__).with_name("recorded.json")


def network(seed: int = 1, dropout: float = 0.2) -> UNet:
    torch.manual_seed(seed)
    net = UNet(1, 8, (1, 2), 1, (), num_classes=3, dropout=dropout)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def options(**own):
    return {
        "backbone": network(), "image_shape": (1, 8, 8), "optimizer": lambda p: torch.optim.SGD(p, lr=1e-3), **own,
    }  # fmt: skip


def progressive_ct():
    levels = ProgressiveLevels(2, 20)
    return ConsistencyTraining(
        **options(
            curriculum=GridCurriculum(levels), distance=L2(), weighting=Uniform(),
            target_rate=ProgressiveRate(levels, 0.9),
        )
    )  # fmt: skip


def distillation(solver):
    teacher = DiffusionModule(network(2), (1, 8, 8))
    return ConsistencyDistillation(
        **options(teacher=teacher, solver=solver, curriculum=GridCurriculum(ConstantLevels(6))),
        start_from_teacher=False,
        target_rate=ConstantRate(0.95),
    )


METHODS = {
    "CT": progressive_ct,
    "iCT": lambda: ConsistencyTraining(
        **options(curriculum=GridCurriculum(DoublingLevels(2, 16), LogNormalIntervals()), distance=PseudoHuber())
    ),
    "ECT": lambda: ConsistencyTraining(**options(weighting=InverseVariance(), distance=PseudoHuber(0.0))),
    "ECT after a warm-up": lambda: ConsistencyTraining(
        **options(curriculum=WarmUp(ContinuousCurriculum(stages=3), 0.4))
    ),
    "CD, Heun": lambda: distillation("heun"),
    "CD, Euler": lambda: distillation("euler"),
    "EDM": lambda: DiffusionModule(**options()),
    "ECT without classes' labels": lambda: ConsistencyTraining(**options(label_dropout=0.5)),
}


def latent(structure, student):
    from cm_lightning.latent.base import TextToImageBase
    from cm_lightning.latent.student import LoRA, WholeUNet
    from cm_lightning.modules.latent_consistency import LatentConsistencyDistillation
    from tests.latent.tiny import tiny_sd, tiny_sdxl

    pipe = tiny_sdxl() if structure == "sdxl" else tiny_sd(v_prediction=structure == "sd21")
    torch.manual_seed(1)
    chosen = LoRA(4) if student == "lora" else WholeUNet(8)
    return LatentConsistencyDistillation(
        TextToImageBase(pipe), chosen, guidance=(0.0, 2.0), target_rate=ConstantRate(0.5),
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-2),
    )  # fmt: skip


LATENT = [("sd15", "lora"), ("sd21", "lora"), ("sdxl", "lora"), ("sd15", "whole"), ("sd21", "whole")]


class Losses(list):
    """The losses of the steps of a run."""

    def watch(self, m):
        inner = m.training_step

        def step(*args):
            loss = inner(*args)
            self.append(loss.item())
            return loss

        m.training_step = step


def followed(m, data, tmp_path):
    losses = Losses()
    losses.watch(m)
    before = [p.detach().double().clone() for p in m.backbone.parameters()]
    torch.manual_seed(7)
    trainer(tmp_path, max_steps=5).fit(m, data)
    g = torch.Generator().manual_seed(9)
    moved = sum(
        ((p.detach() - b) * torch.randn(p.shape, generator=g, dtype=torch.float64)).sum().item()
        for p, b in zip(m.backbone.parameters(), before, strict=True)
    )
    return [*losses, moved]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_s_first_steps_are_as_recorded(method, tmp_path):
    found = followed(METHODS[method](), images((1, 8, 8), 10, 2, 3), tmp_path)
    assert found == pytest.approx(json.loads(RECORDED.read_text())[method], rel=1e-4)


@pytest.mark.parametrize(("structure", "student"), LATENT)
def test_latent_consistency_s_first_steps_are_as_recorded(structure, student, tmp_path):
    pytest.importorskip("diffusers")
    from tests.modules.test_latent import captioned

    found = followed(latent(structure, student), captioned(10, 16, 2), tmp_path)
    *losses, moved = json.loads(RECORDED.read_text())[f"LCM, {structure}, {student}"]
    assert found[:-1] == pytest.approx(losses, rel=1e-4)
    assert found[-1] == pytest.approx(moved, rel=2e-3)  # a sum of steps that nearly cancel
