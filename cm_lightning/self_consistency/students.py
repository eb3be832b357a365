"""Consistency models of the mixture, trained by the suite's own modules and compared with the exact f."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Adam

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.callbacks.ema import EMA
from cm_lightning.core.curriculum import DoublingLevels, GridCurriculum
from cm_lightning.core.distance import L2
from cm_lightning.core.oracle import MixtureOracle
from cm_lightning.core.schedule import HoldThenCosine
from cm_lightning.core.weighting import InverseGap
from cm_lightning.data.base import GenerativeDataModule, InMemory
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distillation import ConsistencyDistillation
from cm_lightning.modules.training import ConsistencyTraining
from cm_lightning.self_consistency.plane import mixture


class MixtureData(GenerativeDataModule):
    """Points of a mixture; the labels are all 0."""

    image_shape = (2,)

    def __init__(self, oracle: MixtureOracle, num_points: int = 50_000, batch_size: int = 256, seed: int = 0) -> None:
        super().__init__(batch_size, seed=seed)
        self.oracle, self.num_points = oracle, num_points

    def load(self, split: str) -> InMemory:
        generator = torch.Generator().manual_seed(2 * self.seed + (split == "val"))
        return InMemory(self.oracle.sample(self.num_points, generator), torch.zeros(self.num_points).long())


class ExactTeacher(DiffusionModule):
    """A teacher without error: the closed-form denoiser in place of a trained one."""

    def __init__(self, oracle: MixtureOracle) -> None:
        super().__init__(nn.Identity(), image_shape=(2,))
        self.oracle = oracle

    def denoiser(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.oracle.denoiser(x, sigma)


@dataclass
class Stage:
    """The averaged weights at the end of the training steps with n levels."""

    n: int
    backbone: nn.Module


class Stages(Callback):
    """Keeps the averaged weights at the end of each stage of the curriculum."""

    def __init__(self, ema: EMA) -> None:
        self.ema = ema
        self.stages: list[Stage] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, ConsistencyModule)
        levels, step, total = pl_module.objective.curriculum.levels, pl_module.trained_steps, pl_module.total_steps
        assert levels is not None
        n = levels(step - 1, total)
        if step < total and levels(step, total) == n:
            return
        with self.ema.applied(pl_module):
            self.stages.append(Stage(n, copy.deepcopy(pl_module.backbone)))


def train(method: str, steps: int, seed: int) -> tuple[ConsistencyModule, list[Stage]]:
    """A consistency model of the mixture by ``CD``, in Euler steps of the exact teacher, or by ``CT``.

    The gap between levels halves five times, from N = 3 to 65; the module is returned with its final weights.
    """
    torch.manual_seed(seed)
    oracle = mixture(dtype=torch.float32)
    module = _module(method, oracle)
    ema = EMA(decay=0.99)
    stages = Stages(ema)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[ema, stages],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, MixtureData(oracle, seed=seed))
    return module, stages.stages


def _module(method: str, oracle: MixtureOracle) -> ConsistencyModule:
    options: dict[str, Any] = {
        "backbone": ResidualMLP(2, width=128, depth=3),
        "image_shape": (2,),
        "curriculum": GridCurriculum(DoublingLevels(s0=2, s1=64)),
        "distance": L2(),
        "weighting": InverseGap(),
        "optimizer": lambda parameters: Adam(parameters, lr=2e-3, betas=(0.9, 0.99)),
        "lr_scheduler": HoldThenCosine(rise=50, hold=0.3, drop=1.0),
    }
    if method == "CT":
        return ConsistencyTraining(**options)
    return ConsistencyDistillation(teacher=ExactTeacher(oracle), solver="euler", start_from_teacher=False, **options)
