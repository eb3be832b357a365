"""The training step that consistency training and consistency distillation share."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cm_lightning.core.curriculum import Curriculum, TargetRate
from cm_lightning.core.distance import Distance
from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, add_noise, unit_noise
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.sampler import multistep, spread_sigmas
from cm_lightning.core.weighting import Weighting
from cm_lightning.domains import COUNT, POSITIVE, check_ascending
from cm_lightning.errors import ConfigError
from cm_lightning.modules.base import GenerativeModule, Generators, check_descending
from cm_lightning.modules.randomness import Replay
from cm_lightning.modules.target import move_target


class ConsistencyModule(GenerativeModule):
    """A network that maps any point of a trajectory to its clean end (CM, Song et al. 2023).

    Methods differ in :meth:`earlier_point`, and in the objects they are made of.

    Args:
        backbone, image_shape, options: see :class:`GenerativeModule`.
        curriculum: draws the noise levels t > r.
        distance: between the two outputs.
        weighting: of the pair of noise levels.
        parameterization: makes the consistency function from the network; the identity at its sigma_min.
        target_rate: mu(k) of a target network, a running average of the student; None: the student itself (iCT, ECT).
        sigma_max: where sampling starts.
        sampling_sigmas: noise levels for a number of steps, ``{2: [80, 0.821]}``; else on the Karras grid.
    """

    target: nn.Module | None

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None,
        curriculum: Curriculum,
        distance: Distance,
        weighting: Weighting,
        parameterization: BoundaryShifted | None = None,
        target_rate: TargetRate | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        **options: Any,
    ) -> None:
        POSITIVE.check(self, sigma_max=sigma_max)
        levels = _sampling_sigmas(sampling_sigmas or {})
        super().__init__(backbone, image_shape, **options)
        self.curriculum, self.distance, self.weighting = curriculum, distance, weighting
        self.parameterization = parameterization or BoundaryShifted()
        self.target_rate = target_rate
        self.target = copy.deepcopy(backbone).requires_grad_(False) if target_rate else None
        self.sigma_max = sigma_max
        check_ascending(self, sigma_min=self.parameterization.sigma_min, sigma_max=sigma_max)
        self.sampling_sigmas = levels

    @abstractmethod
    def earlier_point(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, r: Tensor, labels: Tensor | None) -> Tensor:
        """The point at level r of the trajectory through x_t = x + t z at level t. All (B, ...); t, r (B,)."""

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """Mean w(t, r) d(f(x_t, t), sg f_target(x_r, r)): CM, Algorithms 2 and 3."""
        step, total = self.clock
        t, r = self.curriculum.pairs(len(x), step, total, x.device, generator)
        z = unit_noise(x.shape, generator, x.device, x.dtype)
        x_t = add_noise(x, t, z)

        same_dropout = Replay(x.device) if self.training else nullcontext()
        f_t = self.parameterization(self.backbone, x_t, t, labels)
        with torch.no_grad(), same_dropout:
            if self.curriculum.target_is_data(step, total):
                f_r = x  # f is the identity at r = 0: no need to evaluate the network
            else:
                x_r = self.earlier_point(x, z, x_t, t, r, labels)
                f_r = self.parameterization(self.target or self.backbone, x_r, r, labels)
        return (self.weighting(t, r) * self.distance(f_t, f_r)).mean()

    def progress(self, step: int, total: int) -> dict[str, float]:
        shown = self.curriculum.progress(step, total)
        if self.target_rate:
            shown["mu"] = self.target_rate(*self.curriculum.clock(step, total))
        return shown

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Target <- mu target + (1 - mu) student, right after the step: a checkpoint of the step must have it."""
        clock = self.curriculum.clock(*self.clock)
        super().optimizer_step(*args, **kwargs)
        if self.target is None or self.target_rate is None:
            return
        move_target(self.target, self.backbone, self.target_rate(*clock))

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        super().load_backbone(state)
        if self.target is not None:
            self.target.load_state_dict(state)

    def consistency_function(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """f(x, sigma) with the weights the module holds: (B, ...), (B,), (B,) or None -> (B, ...)."""
        return self.parameterization(self.backbone, x, sigma, labels)

    def generate(self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators) -> Tensor:
        f = partial(self.consistency_function, labels=labels)
        return multistep(
            f, z, sigmas, self.parameterization.sigma_min, lambda x: unit_noise(x.shape, generator, x.device, x.dtype)
        )

    def trained_levels(self) -> tuple[float, float]:
        return self.parameterization.sigma_min, self.sigma_max

    def default_sigmas(self, steps: int) -> list[float]:
        COUNT.check(steps=steps)
        sigma_min = max(self.parameterization.sigma_min, SIGMA_MIN)
        return self.sampling_sigmas.get(steps) or spread_sigmas(steps, sigma_min, self.sigma_max)


def _sampling_sigmas(table: Mapping[Any, Sequence[float]]) -> dict[int, list[float]]:
    """The noise levels by their number, which is text where the table comes from JSON.

    Raises:
        ConfigError: there are not as many levels as steps.
    """
    levels = {int(key) if isinstance(key, str) and key.isdecimal() else key: row for key, row in table.items()}
    for steps, sigmas in levels.items():
        COUNT.check(**{"a number of steps in sampling_sigmas": steps})
        option = f"sampling_sigmas of {steps} steps"
        check_descending(sigmas, option)
        if len(sigmas) != steps:
            raise ConfigError(f"{option} must be {steps} noise levels, got {list(sigmas)}")
    return {steps: list(sigmas) for steps, sigmas in levels.items()}
