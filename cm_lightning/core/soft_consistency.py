"""Soft consistency: jumps of a flow map against a teacher's steps and a jump, compared at the clean end (CTM)."""

from __future__ import annotations

import random
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from cm_lightning.core.curriculum import Clock, ConstantLevels, Device, GridCurriculum, Levels, Times
from cm_lightning.core.distance import Distance
from cm_lightning.core.noise import (
    SIGMA_MAX,
    SIGMA_MIN,
    LogNormal,
    LogNormalAndHigh,
    add_noise,
    expand,
    unit_noise,
)
from cm_lightning.core.objective import FlowMap, Objective
from cm_lightning.core.parameterization import DenoiserJump, Map
from cm_lightning.core.random import Replay
from cm_lightning.core.trajectory import Teacher
from cm_lightning.core.weighting import Weighting, edm_weight
from cm_lightning.domains import COUNT, NON_NEGATIVE

#: The bounds of the weight that balances two losses, as in CTM's released code.
_SMALLEST_NORM, _LARGEST_WEIGHT = 1e-4, 1e4


class JumpTimes(GridCurriculum):
    """Levels t > q >= r of a Karras grid; from t to q the teacher takes the same number of whole steps in all samples.

    The number k of steps is drawn with a probability that is proportional to k, then t and r uniformly. It is a
    function of the training step: ranks that took different numbers of steps would wait for each other.

    Args:
        levels: N(k); 18 throughout if None.
        most: the largest number of steps; one less than there are levels if that is smaller.
        sigma_min, sigma_max, rho: see :class:`~cm_lightning.core.curriculum.GridCurriculum`.
    """

    def __init__(
        self,
        levels: Levels | None = None,
        most: int = 17,
        sigma_min: float = SIGMA_MIN,
        sigma_max: float = SIGMA_MAX,
        rho: float = 7.0,
    ) -> None:
        super().__init__(levels or ConstantLevels(18), None, sigma_min, sigma_max, rho)
        COUNT.check(self, most=most)
        self.most = most

    def solver_steps(self, clock: Clock) -> int:
        """The number of the teacher's steps at a step of the run."""
        numbers = range(1, min(self.most, self.levels(*clock) - 1) + 1)
        return random.Random(clock.step).choices(numbers, weights=numbers)[0]

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        sigmas, steps = self.grid(clock, device).sigmas, self.solver_steps(clock)
        count = len(sigmas)
        i = torch.randint(count - steps, (n,), device=device, generator=generator)
        beyond = torch.rand(n, dtype=torch.float32, device=device, generator=generator) * (count - i - steps)
        last = (i + steps + beyond.long()).clamp(max=count - 1)
        return Times(sigmas[i], sigmas[i + steps], sigmas[last])


class SoftConsistency(Objective):
    """The loss of CTM without its discriminator (Kim et al. 2023, Algorithm 4), on the VE path.

    A jump X(x_t, t, r) must end where the teacher's steps from t to q and a jump from q to r do. Both ends are compared
    after a jump to the clean end, where a distance between images is meaningful:

        d(X_target(X(x_t, t, r), r, 0), sg X_target(X_target(x_q, q, r), r, 0)).

    At q = r the teacher's whole way is distilled, at q next to t consistency between neighbours, and at r = 0 it is
    consistency distillation. In addition, g(x_t, t, t) learns to denoise, under EDM's weight. All passes of a part draw
    the same dropout mask.

    The second loss is scaled to the first: the norms of their gradients in the network's last layer become equal. In
    validation, without gradients, the losses are added as they are.

    Args:
        curriculum: draws the levels.
        trajectory: the teacher.
        distance: distance between the two clean ends.
        weighting: weight of t and q.
        density: density of the levels at which the network denoises; :class:`LogNormalAndHigh` if None.
        denoising_weight: weight of the second loss; 1 as published, and 0 leaves the loss out.
        balanced: whether the second loss is scaled to the first; if not, ``denoising_weight`` alone is its weight.
    """

    curriculum: JumpTimes
    trajectory: Teacher

    def __init__(
        self,
        curriculum: JumpTimes,
        trajectory: Teacher,
        distance: Distance,
        weighting: Weighting,
        density: LogNormal | None = None,
        denoising_weight: float = 1.0,
        balanced: bool = True,
    ) -> None:
        NON_NEGATIVE.check(self, denoising_weight=denoising_weight)
        super().__init__()
        self.curriculum, self.trajectory, self.distance, self.weighting = curriculum, trajectory, distance, weighting
        self.density, self.denoising_weight, self.balanced = density or LogNormalAndHigh(), denoising_weight, balanced

    @property
    def keeps_graph(self) -> bool:  # type: ignore[override]
        return self.balanced and self.denoising_weight > 0

    def loss(
        self, map: Map, target: FlowMap, x: Tensor, c: Any, clock: Clock, generator: Generator | None = None
    ) -> Tensor:
        matching = self.matching(map, target, x, c, clock, generator)
        if not self.denoising_weight:
            return matching
        denoising = self.denoising(map, x, c, generator)
        self.shown |= {"matching": matching.detach(), "denoising": denoising.detach()}
        weight = (
            balance(matching, denoising, cast(nn.Module, map.network))
            if self.balanced and matching.requires_grad
            else 1.0
        )
        return matching + self.denoising_weight * weight * denoising

    def matching(
        self, map: FlowMap, target: FlowMap, x: Tensor, c: Any, clock: Clock, generator: Generator | None = None
    ) -> Tensor:
        """The first loss. Its gradient passes through the last jump, but not into the weights of a frozen target."""
        (t, q, r), _, x_t = self.draw(x, c, clock, generator)
        same_dropout, end = Replay(x.device), torch.zeros_like(t)
        here = map(x_t, t, r, c)
        with same_dropout:
            clean = target(here, r, end, c)
        with torch.no_grad():
            x_q = self.trajectory.solve(x_t, t, q, self.curriculum.solver_steps(clock), c)
            with same_dropout:
                there = target(x_q, q, r, c)
            with same_dropout:
                goal = target(there, r, end, c)
        self.show(clean - goal)
        return (self.weighting(t, q) * self.distance(clean, goal)).mean()

    def denoising(self, map: Map, x: Tensor, c: Any, generator: Generator | None = None) -> Tensor:
        """The second loss, the mean of lambda(t) (g(x_t, t, t) - x)^2 (EDM, Eq. 2)."""
        assert isinstance(map.parameterization, DenoiserJump)
        t = self.density.sample(len(x), x.device, generator)
        x_t = add_noise(x, t, unit_noise(x.shape, generator, x.device, x.dtype))
        error = map.parameterization.denoised(map.network, x_t, t, c) - x
        return (expand(edm_weight(t, map.parameterization.sigma_data), x) * error.square()).mean()


def balance(first: Tensor, second: Tensor, network: nn.Module) -> Tensor:
    """The factor of a second loss at which its gradient is as strong as that of the first (VQGAN; CTM, Eq. 13).

    Args:
        first, second: losses, scalars.
        network: the network. The gradients are compared in its last matrix, that of its ``head`` if it has one.
    """
    layer = cast(nn.Module, getattr(network, "head", network))
    last = [p for p in layer.parameters() if p.ndim > 1][-1]
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (first, second)]
    return cast(Tensor, norms[0] / (norms[1] + _SMALLEST_NORM)).clamp(max=_LARGEST_WEIGHT)
