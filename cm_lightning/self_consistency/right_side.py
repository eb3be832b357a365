"""Claims on the right side v(x, t) = (x - D(x, t)) / t of the ODE: its derivative, Lipschitz constant and growth."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from cm_lightning.core.lipschitz import ball_bound, jacobian, smooth_bound
from cm_lightning.core.noise import karras_sigmas
from cm_lightning.core.oracle import MixtureOracle
from cm_lightning.core.solver import slope
from cm_lightning.self_consistency.claim import Claim
from cm_lightning.self_consistency.plane import RADIUS, STD, mixture, total_variance, two_points

#: A measured ratio to a bound may exceed 1 by rounding.
ATTAINED = 1 + 1e-9
LEVELS = 41


def places(levels: int = LEVELS, side: int = 41) -> tuple[Tensor, Tensor]:
    """Points x (B, 2) and levels sigma (B,) to measure at: a grid, and the points half-way between two means.

    Close to t = 0 the right side is steep only where two means are equally far, which a grid misses.
    """
    axis = torch.linspace(-1.5, 1.5, side, dtype=torch.float64)
    pairs = combinations(mixture().means, 2)
    x = torch.cat([torch.cartesian_prod(axis, axis), torch.stack([(a + b) / 2 for a, b in pairs])])
    sigma = karras_sigmas(levels)
    return x.repeat(levels, 1), sigma.repeat_interleave(len(x))


def steepness(oracle: MixtureOracle, x: Tensor, sigma: Tensor) -> Tensor:
    """|dv/dx| at each point, the spectral norm: x (B, D), sigma (B,) -> (B,)."""
    norm: Tensor = torch.linalg.matrix_norm(jacobian(lambda x, sigma: slope(oracle.denoiser, x, sigma), x, sigma), 2)
    return norm


def right_side_claims() -> list[Claim]:
    """Theorem 1 and its constants, on four points, four Gaussians, and the worst case."""
    x, sigma = places()
    smooth, points, worst = mixture(), mixture(std=0), two_points()

    covariance = smooth.posterior(x, sigma).covariance() / sigma[:, None, None] ** 2
    derivative = (jacobian(smooth.denoiser, x, sigma) - covariance).abs().max()
    in_ball = (steepness(points, x, sigma) / ball_bound(RADIUS, sigma)).max()
    levels = karras_sigmas(LEVELS)
    sharp = steepness(worst, torch.zeros(len(levels), 2, dtype=torch.float64), levels)
    low = levels < RADIUS / 2**0.5  # above it the bound is 1 / t, which only far points approach
    attained = (sharp[low] / ball_bound(RADIUS, levels[low]) - 1).abs().max()
    blurred = (steepness(smooth, x, sigma) / smooth_bound(RADIUS, STD, sigma)).max()

    mean, variance = total_variance(smooth)
    distance = (x - smooth.denoiser(x, sigma)).square().sum(1)
    growth = (distance / ((x - mean).square().sum(1) + variance)).max()
    return [
        Claim("dD/dx = Cov[x0 given x_t] / t^2", derivative.item(), 1e-10),
        Claim("four points in a ball: steepness of v / its bound", in_ball.item(), ATTAINED),
        Claim("two points attain that bound: relative difference", attained.item(), 1e-9),
        Claim("four Gaussians: steepness of v / the bound that is finite at t = 0", blurred.item(), ATTAINED),
        Claim("linear growth: (x - D)^2 / ((x - mean)^2 + variance)", growth.item(), ATTAINED),
    ]


def steepness_curves() -> tuple[Tensor, Tensor, Tensor]:
    """Levels t (L,), and the largest measured steepness of v at each, for four points and for four Gaussians: (L,)."""
    x, sigma = places()
    points, smooth = (steepness(o, x, sigma).reshape(LEVELS, -1).max(1).values for o in (mixture(std=0), mixture()))
    return karras_sigmas(LEVELS), points, smooth
