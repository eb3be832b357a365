"""The limits of CD and CT at N noise levels, which a network without approximation error would learn."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from cm_lightning.core.oracle import MixtureOracle
from cm_lightning.core.solver import Denoiser, Step, euler_step


def distilled(denoiser: Denoiser, x: Tensor, sigmas: Tensor, step: Step = euler_step) -> Tensor:
    """The fixed point of CD at x (B, ...): the end of the teacher's steps down the levels sigmas (N,).

    f(x, t_{n+1}) = f(step(x), t_n) and f(x, sigma_min) = x, applied N - 1 times (CM, Theorem 1).
    """
    for t, r in pairwise(sigmas.to(x)):
        x = step(denoiser, x, t.expand(len(x)), r.expand(len(x)))
    return x


def same_noise_point(oracle: MixtureOracle, x: Tensor, t: Tensor, r: Tensor, generator: torch.Generator) -> Tensor:
    """The point of consistency training at level r, given x (B, D) at level t (B,): x0 + r z with x0 + t z = x.

    x0 is a draw of the posterior, and then z = (x - x0) / t is fixed: the point lies on the line from x to x0.
    """
    x0 = oracle.posterior(x, t).sample(generator)
    return x0 + (r / t)[:, None] * (x - x0)


def trained(oracle: MixtureOracle, x: Tensor, sigmas: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """The fixed point of CT with the l2 distance at x (B, D), by Monte Carlo over ``draws`` chains for each point.

    f(x, t_{n+1}) = E[f(x0 + t_n z, t_n) | x0 + t_{n+1} z = x] is the mean end of the chain of :func:`same_noise_point`.
    """
    chains = x.repeat_interleave(draws, 0)
    for t, r in pairwise(sigmas.to(x)):
        chains = same_noise_point(oracle, chains, t.expand(len(chains)), r.expand(len(chains)), generator)
    return chains.reshape(len(x), draws, -1).mean(1)


def reverse_sde(denoiser: Denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator) -> Tensor:
    """Paths of dx = 2 v dt + sqrt(2 t) dw down the levels by Euler-Maruyama: (N, B, ...) from x (B, ...).

    It has the same densities at each level as the ODE dx = v dt (Song et al. 2021, Eq. 6), but its paths are random.
    """
    points = [x]
    for t, r in pairwise(sigmas.to(x)):
        drift = 2 * (euler_step(denoiser, points[-1], t.expand(len(x)), r.expand(len(x))) - points[-1])
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        points.append(points[-1] + drift + (t**2 - r**2).sqrt() * noise)
    return torch.stack(points)
