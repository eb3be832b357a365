"""Claims on randomness: what a network would learn from a stochastic path, and what CT's pair of points is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cm_lightning.core.ideal import distilled, reverse_sde, same_noise_point
from cm_lightning.core.noise import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, karras_sigmas
from cm_lightning.core.oracle import MixtureOracle
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.solver import euler_step
from cm_lightning.self_consistency.claim import Claim
from cm_lightning.self_consistency.ode import trajectory
from cm_lightning.self_consistency.plane import mixture

#: A point from which every Gaussian of the mixture can still be reached, and its level.
POINT, LEVEL = (0.1, 0.1), 0.6


def randomness_claims(n: int, generator: torch.Generator) -> list[Claim]:
    """Section 5 of the page, with n stochastic paths and 100 n draws of the same-noise pair."""
    return [
        *_stochastic_path(n, generator),
        *_same_noise(100 * n, generator),
        _perfect_distillation(n, generator),
        _c_out(),
    ]


def start(n: int) -> tuple[Tensor, Tensor]:
    """The start, n copies of POINT and LEVEL: (n, 2), (n,)."""
    return torch.tensor(POINT, dtype=torch.float64).repeat(n, 1), torch.full((n,), LEVEL, dtype=torch.float64)


def _moments(oracle: MixtureOracle) -> tuple[Tensor, float]:
    """The mean of the posterior at POINT, and the root of the trace of its covariance."""
    posterior = oracle.posterior(*start(1))
    return posterior.mean()[0], posterior.covariance()[0].trace().sqrt().item()


def _spread(x: Tensor) -> float:
    return x.var(0).sum().sqrt().item()


def _stochastic_path(n: int, generator: torch.Generator) -> list[Claim]:
    oracle = mixture()
    mean, std = _moments(oracle)
    ends = reverse_sde(oracle.denoiser, start(n)[0], karras_sigmas(400, SIGMA_MIN, LEVEL), generator)[-1]
    return [
        Claim("reverse SDE: mean end - D(x, t)", (ends.mean(0) - mean).norm().item(), 4 * std / n**0.5 + 0.01),
        Claim("reverse SDE: spread of the ends / that of the posterior - 1", abs(_spread(ends) / std - 1), 4 / n**0.5),
    ]


def _same_noise(n: int, generator: torch.Generator) -> list[Claim]:
    oracle = mixture()
    x, t = start(n)
    r = 0.8 * t
    _, std = _moments(oracle)
    pairs = same_noise_point(oracle, x, t, r, generator)
    euler = euler_step(oracle.denoiser, x[:1], t[:1], r[:1])[0]
    scatter = 0.2 * std
    return [
        Claim(
            "same noise: mean of x0 + r z - Euler's step", (pairs.mean(0) - euler).norm().item(), 4 * scatter / n**0.5
        ),
        Claim("same noise: scatter / ((1 - r/t) spread of x0) - 1", abs(_spread(pairs) / scatter - 1), 4 / n**0.5),
        Claim("Euler's step misses the trajectory by gap^2: order - 2", abs(_order_of_a_step(oracle) - 2), 0.1),
    ]


def _order_of_a_step(oracle: MixtureOracle) -> float:
    x, t = start(1)

    def missed(gap: float) -> float:
        r = LEVEL * (1 - gap)
        exact = trajectory(oracle.denoiser, x, (LEVEL, r))[-1]
        return float((euler_step(oracle.denoiser, x, t, torch.full_like(t, r)) - exact).norm())

    return math.log2(missed(0.02) / missed(0.01))


def _perfect_distillation(n: int, generator: torch.Generator) -> Claim:
    oracle = mixture()
    x = SIGMA_MAX * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    exact = trajectory(oracle.denoiser, x, (SIGMA_MAX, SIGMA_MIN))[-1]
    coarse, fine = (
        (distilled(oracle.denoiser, x, karras_sigmas(levels)) - exact).norm(dim=1).mean().item()
        for levels in (161, 321)
    )
    return Claim("CD without network error: falls with 1/N, order - 1", abs(math.log2(coarse / fine) - 1), 0.2)


def _c_out() -> Claim:
    c_out = BoundaryShifted().coefficients(torch.tensor([SIGMA_MAX], dtype=torch.float64)).c_out.item()
    return Claim("c_out(T) - sigma_data", abs(c_out - SIGMA_DATA), 1e-4)
