"""The clean end of a trajectory from any of its points, by any module, on the module's own path and levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cm_lightning.core.guidance import guided_function
from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, expand
from cm_lightning.core.sampler import ConsistencyFunction, fresh_noise, spread_sigmas
from cm_lightning.domains import COUNT
from cm_lightning.errors import ConfigError
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.flow_map import FlowMapModule

#: The image of a batch and a level -> points at that level (B, ...), under fresh noise.
Noised = Callable[[Tensor, float], Tensor]


class Endpoint(ABC):
    """What editing needs of a module: f(x, t) from every level t of its path, and the way to such a level.

    Levels are those that the module's ``sample`` takes: sigma, or the time of a flow map.
    """

    #: The lowest and the highest noise level, sigma.
    sigmas: tuple[float, float] = (SIGMA_MIN, SIGMA_MAX)
    #: The usual number of levels where a part of an image is put back at each.
    levels_of_edit = 40

    @abstractmethod
    def function(self, labels: Tensor | None, guidance: float = 0.0) -> ConsistencyFunction:
        """Make f(x, t) under classes (B,), or None, and guidance."""

    @abstractmethod
    def noised(self, noise: Callable[[Tensor], Tensor]) -> Noised:
        """Make the map from clean images and a level to points at that level; ``noise`` draws unit noise for x."""

    @abstractmethod
    def levels(self, steps: int) -> list[float]:
        """The descending levels of a number of steps."""

    def level(self, sigma: float) -> float:
        """The level at which the noise is sigma times as strong as the image."""
        return sigma

    def sigma(self, level: float) -> float:
        """The noise level sigma of a level."""
        return level

    def point(self, x: Tensor, level: float) -> Tensor:
        """The point on the path of a noisy image x = x_0 + sigma z, sigma that of the level."""
        return x


class _OfConsistency(Endpoint):
    def __init__(self, module: ConsistencyModule) -> None:
        self.module = module
        self.sigmas = (max(module.parameterization.sigma_min, SIGMA_MIN), module.sigma_max)

    def function(self, labels: Tensor | None, guidance: float = 0.0) -> ConsistencyFunction:
        return guided_function(self.module.consistency_function, labels, self.module.num_classes, guidance)

    def noised(self, noise: Callable[[Tensor], Tensor]) -> Noised:
        return fresh_noise(self.module.parameterization.sigma_min, noise)

    def levels(self, steps: int) -> list[float]:
        return self.module.default_sigmas(steps)


class _OfFlowMap(Endpoint):
    """X(x, t, 0): the second time is always that of clean images."""

    def __init__(self, module: FlowMapModule) -> None:
        self.module = module
        self.path = module.objective.trajectory.path

    def function(self, labels: Tensor | None, guidance: float = 0.0) -> ConsistencyFunction:
        def end(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return self.module.flow_map(x, t, torch.zeros_like(t), labels)

        return guided_function(end, labels, self.module.num_classes, guidance)

    def noised(self, noise: Callable[[Tensor], Tensor]) -> Noised:
        def noised(x: Tensor, t: float) -> Tensor:
            z = noise(x)
            return self.path.point(x, z, z.new_full((len(z),), t))

        return noised

    def levels(self, steps: int) -> list[float]:
        return self.module.default_sigmas(steps)

    def level(self, sigma: float) -> float:
        return float(self.path.level(torch.tensor(sigma, dtype=torch.float64)))

    def sigma(self, level: float) -> float:
        alpha, sigma = self.path.scales(torch.tensor(level, dtype=torch.float64))
        return float(sigma / alpha)

    def point(self, x: Tensor, level: float) -> Tensor:
        alpha, _ = self.path.scales(x.new_full((len(x),), level))
        return expand(alpha, x) * x


class _OfDiffusion(Endpoint):
    """The solution of the probability-flow ODE, which takes many evaluations."""

    levels_of_edit = 18

    def __init__(self, module: DiffusionModule) -> None:
        self.module, self.sigmas = module, module.trained_levels()
        self.grid = module.sampler.sigmas(module.sampler.default_nfe)

    def function(self, labels: Tensor | None, guidance: float = 0.0) -> ConsistencyFunction:
        denoiser = guided_function(self.module.denoiser, labels, self.module.num_classes, guidance)

        def solve(x: Tensor, sigma: Tensor) -> Tensor:
            top = sigma[:1].double().cpu()
            below = self.grid[self.grid < top * (1 - 1e-6)]  # single precision may have raised the level
            return self.module.sampler(denoiser, x / expand(sigma, x), torch.cat([top, below]))

        return solve

    def noised(self, noise: Callable[[Tensor], Tensor]) -> Noised:
        return fresh_noise(0.0, noise)

    def levels(self, steps: int) -> list[float]:
        COUNT.check(steps=steps)
        return spread_sigmas(steps, *self.sigmas)


_KINDS: dict[type[GenerativeModule], Callable[[Any], Endpoint]] = {
    ConsistencyModule: _OfConsistency,
    FlowMapModule: _OfFlowMap,
    DiffusionModule: _OfDiffusion,
}


def endpoint(module: GenerativeModule) -> Endpoint:
    """The end points of a module's trajectories. Raises ConfigError for a module of another kind."""
    for kind, make in _KINDS.items():
        if isinstance(module, kind):
            return make(module)
    names = ", ".join(kind.__name__ for kind in _KINDS)
    raise ConfigError(f"a {type(module).__name__} does not map points to the ends of trajectories: give one of {names}")
