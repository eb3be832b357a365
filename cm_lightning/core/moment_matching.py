"""Inductive moment matching: the two ends of a group of samples must have the same moments (Zhou et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from cm_lightning.core.curriculum import Clock, Curriculum, Device, Times
from cm_lightning.core.objective import FlowMap, Objective
from cm_lightning.core.random import Replay
from cm_lightning.core.trajectory import Trajectory
from cm_lightning.domains import COUNT, INNER, NON_NEGATIVE, POSITIVE, check_ascending


class GroupTimes(Curriculum):
    """Draws the same levels for a group of samples: t and r uniform, q below t by a step in eta = t / (1 - t).

    Args:
        size: samples in a group.
        low: the lowest t.
        high: the highest t.
        k: the step is eta_max / 2^k; q is r where that would lie above it.
        eta_max: the scale of the step.
    """

    def __init__(
        self, size: int = 4, low: float = 0.006, high: float = 0.994, k: float = 15.0, eta_max: float = 160.0
    ) -> None:
        COUNT.check(self, size=size)
        INNER.check(self, low=low, high=high)
        check_ascending(self, low=low, high=high)
        NON_NEGATIVE.check(self, k=k)
        POSITIVE.check(self, eta_max=eta_max)
        self.size, self.low, self.high, self.step = size, low, high, eta_max / 2**k

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        groups = -(-n // self.size)
        first, second = torch.rand(2, groups, dtype=torch.float32, device=device, generator=generator)
        t = (self.low + (self.high - self.low) * first).repeat_interleave(self.size)[:n]
        r = t * second.repeat_interleave(self.size)[:n]
        return Times(t, self.q(t, r), r)

    def q(self, t: Tensor, r: Tensor) -> Tensor:
        """The q of t and r, each (B,)."""
        eta = (t / (1 - t) - self.step).clamp(min=0)
        return torch.maximum(r, eta / (1 + eta))


def imm_weight(t: Tensor, a: float = 1.0, b: float = 5.0) -> Tensor:
    """1/2 sigmoid(b - l) (-l') alpha^a / (alpha^2 + t^2) with alpha = 1 - t and l = 2 ln(alpha / t): (B,) -> (B,)."""
    alpha = 1 - t
    log_ratio = 2 * (alpha / t).log()
    return torch.sigmoid(b - log_ratio) / (t * alpha) * alpha**a / (alpha**2 + t**2)


def mmd(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of groups, by a Laplace kernel: x and y (G, M, D), scale (G,) -> (G,).

    It is the V-statistic: the mean over all pairs of a group, including those of a sample with itself.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # between a sample and itself the distance is not differentiable; the floor makes that 0
        distance = (a[:, :, None] - b[:, None]).square().sum(3).clamp(min=1e-16).sqrt()
        return (-scale[:, None, None] * distance / a.shape[2]).exp().mean((1, 2))

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


class MomentMatching(Objective):
    """Mean w(t) MMD^2 of the groups' ends X(x_t, t, r) and sg X(x_q, q, r), by a kernel as wide as t - r.

    Both passes draw the same dropout mask. The last group is smaller if the groups do not fill the batch.

    Args:
        curriculum: draws the same levels for all samples of a group.
        trajectory: leads from t to q, and has the path.
        a: exponent of alpha in the weight.
        b: shift of the weight's sigmoid.
    """

    curriculum: GroupTimes

    def __init__(self, curriculum: GroupTimes, trajectory: Trajectory, a: float = 1.0, b: float = 5.0) -> None:
        NON_NEGATIVE.check(self, a=a, b=b)
        super().__init__()
        self.curriculum, self.trajectory, self.a, self.b = curriculum, trajectory, a, b

    def loss(
        self, map: FlowMap, target: FlowMap, x: Tensor, c: Any, clock: Clock, generator: Generator | None = None
    ) -> Tensor:
        (t, q, r), z, x_t = self.draw(x, c, clock, generator)
        same_dropout = Replay(x.device)
        here = map(x_t, t, r, c)
        with torch.no_grad(), same_dropout:
            there = target(self.trajectory.advance(x, z, x_t, t, q, c), q, r, c)
        self.show(here - there)
        size, total = min(self.curriculum.size, len(x)), x.new_zeros((), dtype=torch.float32)
        whole = len(x) // size * size
        for first, last, group in ((0, whole, size), (whole, len(x), len(x) - whole)):
            if group:
                ours, theirs = (end[first:last].reshape(-1, group, end[0].numel()) for end in (here, there))
                level, gap = t[first:last:group], (t - r)[first:last:group]
                losses = imm_weight(level, self.a, self.b) * mmd(ours, theirs, 1 / gap)
                total = total + group * losses.sum() / len(x)
        return total
