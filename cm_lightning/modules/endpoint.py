"""The clean end of a trajectory from any of its points, for any module, on the module's own path and levels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cm_lightning.core.guidance import guided_function
from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, expand
from cm_lightning.core.ode_sampler import integrate
from cm_lightning.core.sampler import ConsistencyFunction, fresh_noise, spread_sigmas
from cm_lightning.core.solver import Denoiser, euler_step
from cm_lightning.domains import COUNT
from cm_lightning.errors import ConfigError
from cm_lightning.modules.adversarial import AdversarialDistillation
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.distribution_matching import DistributionMatchingDistillation
from cm_lightning.modules.flow_map import FlowMapModule
from cm_lightning.modules.progressive import ProgressiveDistillation

#: (images (B, ...), level) -> points at that level (B, ...), under fresh noise.
Noised = Callable[[Tensor, float], Tensor]

#: (denoiser, unit noise (B, ...), descending levels) -> images.
_Solver = Callable[[Denoiser, Tensor, Tensor], Tensor]


class Endpoint(ABC):
    """What editing needs of a module: f(x, t) at every level t of its path, and the way to such a level.

    Levels are those that the module's ``sample`` takes: sigma, or the time of a flow map.
    """

    #: The lowest and the highest noise level, sigma.
    sigmas: tuple[float, float] = (SIGMA_MIN, SIGMA_MAX)
    #: The usual number of levels for edits that put a part of an image back at each.
    levels_of_edit = 40
    #: Whether an ODE is solved down from each level, which takes many evaluations.
    solves = False

    @abstractmethod
    def function(self, labels: Tensor | None, guidance: float = 0.0) -> ConsistencyFunction:
        """Make f(x, t) under classes (B,), or None, and guidance."""

    @abstractmethod
    def noised(self, noise: Callable[[Tensor], Tensor]) -> Noised:
        """Make the map from clean images and a level to points at that level; ``noise`` draws unit noise for x."""

    @abstractmethod
    def levels(self, steps: int) -> list[float]:
        """The descending levels for a number of steps."""

    def level(self, sigma: float) -> float:
        """The level at which the noise is sigma times as strong as the image."""
        return sigma

    def sigma(self, level: float) -> float:
        """The noise level sigma of a level."""
        return level

    def levels_near(self, sigmas: Sequence[float]) -> list[float]:
        """The module's usable levels that are nearest to the given descending noise levels, each once."""
        low, high = self.sigmas
        return [self.level(sigma) for sigma in dict.fromkeys(min(max(sigma, low), high) for sigma in sigmas)]

    def point(self, x: Tensor, level: float) -> Tensor:
        """The point on the path of a noisy image x = x_0 + sigma z, where sigma is that of the level."""
        return x


class _OfConsistency(Endpoint):
    def __init__(self, module: ConsistencyModule) -> None:
        self.module = module
        low, high = module.trained_levels()
        self.sigmas = max(low, SIGMA_MIN), high

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

    levels_of_edit, solves = 18, True

    module: DiffusionModule | AdversarialDistillation

    def __init__(self, module: DiffusionModule) -> None:
        self.module, self.sigmas = module, module.trained_levels()
        self.solver: _Solver = module.sampler
        self.grid = module.sampler.sigmas(module.sampler.default_nfe)

    def function(self, labels: Tensor | None, guidance: float = 0.0) -> ConsistencyFunction:
        denoiser = guided_function(self.module.denoiser, labels, self.module.num_classes, guidance)

        def solve(x: Tensor, sigma: Tensor) -> Tensor:
            top = sigma[:1].double().cpu()
            below = self.grid[self.grid < top * (1 - 1e-6)]  # single precision may have raised the level
            return self.solver(denoiser, x / expand(sigma, x), torch.cat([top, below]))

        return solve

    def noised(self, noise: Callable[[Tensor], Tensor]) -> Noised:
        return fresh_noise(0.0, noise)

    def levels(self, steps: int) -> list[float]:
        COUNT.check(steps=steps)
        return spread_sigmas(steps, *self.sigmas)


class _OfStages(_OfDiffusion):
    """Euler's steps of a few-step student, from a level on which one of its stages trained it."""

    def __init__(self, module: AdversarialDistillation | ProgressiveDistillation) -> None:
        self.module, self.sigmas = module, module.trained_levels()
        self.solver = partial(integrate, euler_step)
        self.grid = torch.tensor(module.default_sigmas(module.default_steps), dtype=torch.float64)
        self.levels_of_edit = module.most_steps
        _require_several(module, self.levels(module.most_steps))

    def levels(self, steps: int) -> list[float]:
        return self.module.default_sigmas(steps)

    def levels_near(self, sigmas: Sequence[float]) -> list[float]:
        return _nearest(sigmas, self.levels(self.levels_of_edit))


class _OfMatching(Endpoint):
    """The generator, at the levels of its steps."""

    def __init__(self, module: DistributionMatchingDistillation) -> None:
        _require_several(module, module.levels)
        self.module, self.sigmas, self.levels_of_edit = module, module.trained_levels(), module.steps

    def function(self, labels: Tensor | None, guidance: float = 0.0) -> ConsistencyFunction:
        return guided_function(self.module.generator, labels, self.module.num_classes, guidance)

    def noised(self, noise: Callable[[Tensor], Tensor]) -> Noised:
        return fresh_noise(0.0, noise)

    def levels(self, steps: int) -> list[float]:
        return self.module.default_sigmas(steps)

    def levels_near(self, sigmas: Sequence[float]) -> list[float]:
        return _nearest(sigmas, self.module.levels)


def _require_several(module: GenerativeModule, levels: Sequence[float]) -> None:
    """Raise ConfigError for a network that was trained on pure noise alone."""
    if len(levels) == 1:
        raise ConfigError(
            f"this {type(module).__name__} was trained at noise level {levels[0]:g} alone, where nothing of an image "
            "is left: edit with one that was trained at several levels"
        )


def _nearest(sigmas: Sequence[float], levels: Sequence[float]) -> list[float]:
    """The levels that are nearest to the given noise levels in their logarithm, each once, descending."""
    found = {min(levels, key=lambda level: abs(math.log(level / sigma))) for sigma in sigmas}
    return sorted(found, reverse=True)


_KINDS: dict[type[GenerativeModule], Callable[[Any], Endpoint]] = {
    ConsistencyModule: _OfConsistency,
    FlowMapModule: _OfFlowMap,
    ProgressiveDistillation: _OfStages,
    AdversarialDistillation: _OfStages,
    DistributionMatchingDistillation: _OfMatching,
    DiffusionModule: _OfDiffusion,  # also of ProgressiveDistillation, a subclass
}


def endpoint(module: GenerativeModule) -> Endpoint:
    """The map from points to end points for a module's trajectories.

    Raises:
        ConfigError: the module is of another kind, or was trained at the level of pure noise alone.
    """
    for kind, make in _KINDS.items():
        if isinstance(module, kind):
            return make(module)
    names = ", ".join(kind.__name__ for kind in _KINDS)
    raise ConfigError(f"a {type(module).__name__} does not map points to the ends of trajectories: give one of {names}")
