"""The base of consistency models: a target network, and sampling in a few evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.guidance import guided_function
from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, expand, unit_noise
from cm_lightning.core.objective import Chord, Tangent
from cm_lightning.core.parameterization import BoundaryShifted, DenoiserJump, Map, Trigonometric
from cm_lightning.core.sampler import multistep, spread_sigmas
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.soft_consistency import SoftConsistency
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.domains import COUNT, POSITIVE, check_ascending
from cm_lightning.errors import ConfigError
from cm_lightning.modules.base import GenerativeModule, Generators, check_descending, ready
from cm_lightning.modules.target import TargetNetwork

T = TypeVar("T")


class ConsistencyModule(GenerativeModule):
    """A network that maps any point of a trajectory to its clean end (CM, Song et al. 2023).

    Args:
        backbone, image_shape, label_dropout, optimizer, lr_scheduler, start_from: see :class:`GenerativeModule`.
        objective: the loss; the methods differ in its parts.
        parameterization: makes the consistency function from the network; it is the identity at its sigma_min.
        target_rate: mu(k) of a target network, a running average of the student; if None, the student itself is the
            target (iCT, ECT).
        sigma_max: the level at which sampling starts.
        sampling_sigmas: noise levels for a number of steps, ``{2: [80, 0.821]}``; for others the Karras grid is used.
        contrast: factors on the images for a number of steps, ``{1: 1.5}``. One step draws a mean of similar images,
            which is greyer than each of them.
    """

    objective: Chord | Tangent | SoftConsistency
    target: nn.Module | None

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None,
        objective: Chord | Tangent | SoftConsistency,
        parameterization: BoundaryShifted | Trigonometric | DenoiserJump | None = None,
        target_rate: TargetRate | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
        contrast: Mapping[int, float] | None = None,
    ) -> None:
        POSITIVE.check(self, sigma_max=sigma_max)
        levels, factors = checked_levels(sampling_sigmas or {}), by_steps(contrast or {}, "contrast")
        POSITIVE.check(self, **{f"contrast of {steps} steps": factor for steps, factor in factors.items()})
        super().__init__(backbone, image_shape, label_dropout, optimizer, lr_scheduler, start_from)
        self.objective = ready(objective, backbone)
        self.parameterization = parameterization or BoundaryShifted()
        self.target_network = TargetNetwork(backbone, target_rate, objective.curriculum) if target_rate else None
        self.target = self.target_network.network if self.target_network else None
        self.followers = (self.target_network,) if self.target_network else ()
        self.sigma_max = sigma_max
        check_ascending(self, sigma_min=self.parameterization.sigma_min, sigma_max=sigma_max)
        self.sampling_sigmas, self.contrast = levels, factors

    def map(self, network: nn.Module | None = None) -> Map:
        """The consistency function of a network (the backbone if None), in the form that the objective expects."""
        return Map(self.parameterization, network or self.backbone)

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        map = self.map()
        target = self.map(self.target) if self.target else map
        return self.objective.loss(map, target, x, labels, self.clock, generator)

    def progress(self, clock: Clock) -> dict[str, float]:
        mu = {"mu": self.target_network.mu(clock)} if self.target_network else {}
        return self.objective.curriculum.progress(clock) | mu

    def consistency_function(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, network: nn.Module | None = None
    ) -> Tensor:
        """f(x, sigma) with the weights that the module holds: (B, ...), (B,), (B,) or None -> (B, ...).

        x = x_0 + sigma z, regardless of the path that the module trains on. The network is the backbone if None.
        """
        path = self.objective.trajectory.path
        t = path.level(sigma)
        alpha, _ = path.scales(t)
        return self.parameterization(network or self.backbone, expand(alpha, x) * x, t, labels)

    def one_step(self, z: Tensor, labels: Tensor | None, network: nn.Module | None = None) -> Tensor:
        """Images from unit noise z (B, ...) in one evaluation of a network, the backbone if None."""
        sigma = self.sigma_max * torch.ones_like(z.flatten(1)[:, 0])
        return self.consistency_function(self.sigma_max * z, sigma, labels, network)

    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators, guidance: float = 0.0
    ) -> Tensor:
        f = guided_function(self.consistency_function, labels, self.num_classes, guidance)
        return multistep(
            f, z, sigmas, self.parameterization.sigma_min, lambda x: unit_noise(x.shape, generator, x.device, x.dtype)
        )

    def trained_levels(self) -> tuple[float, float]:
        return self.parameterization.sigma_min, self.sigma_max

    def default_sigmas(self, steps: int) -> list[float]:
        COUNT.check(steps=steps)
        sigma_min = max(self.parameterization.sigma_min, SIGMA_MIN)
        return self.sampling_sigmas.get(steps) or spread_sigmas(steps, sigma_min, self.sigma_max)


def checked_levels(table: Mapping[Any, Sequence[float]]) -> dict[int, list[float]]:
    """The sampling levels by number of steps, checked.

    Raises:
        ConfigError: the number of levels differs from that of the steps.
    """
    levels = by_steps(table, "sampling_sigmas")
    for steps, sigmas in levels.items():
        option = f"sampling_sigmas of {steps} steps"
        check_descending(sigmas, option)
        if len(sigmas) != steps:
            raise ConfigError(f"{option} must be {steps} noise levels, got {list(sigmas)}")
    return {steps: list(sigmas) for steps, sigmas in levels.items()}


def by_steps(table: Mapping[Any, T], option: str) -> dict[int, T]:
    """A table by numbers of steps, which may be given as text. Raises ConfigError unless they are integers >= 1."""
    numbered = {int(key) if isinstance(key, str) and key.isdecimal() else key: value for key, value in table.items()}
    for steps in numbered:
        COUNT.check(**{f"a number of steps in {option}": steps})
    return numbered
