"""Claims on trajectories: existence, uniqueness, and the properties of f that follow from them."""

from __future__ import annotations

import torch
from torch import Tensor

from cm_lightning.core.lipschitz import separation_bounds
from cm_lightning.core.noise import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, add_noise
from cm_lightning.core.oracle import GaussianOracle, MixtureOracle
from cm_lightning.core.solver import slope
from cm_lightning.self_consistency.claim import Claim
from cm_lightning.self_consistency.ode import trajectory
from cm_lightning.self_consistency.plane import RADIUS, STD, mixture
from cm_lightning.self_consistency.right_side import ATTAINED

LEVELS = (SIGMA_MIN, 0.02, 0.1, 0.3, 1.0, 10.0, SIGMA_MAX)


def flow_claims(n: int, generator: torch.Generator) -> list[Claim]:
    """Theorems 2 and 3 on n trajectories of a Gaussian, in closed form, and of the mixture."""
    normal = SIGMA_DATA * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    gaussian, four = GaussianOracle(SIGMA_DATA), mixture()
    return [
        *claims_of("Gaussian", gaussian, normal, generator),
        *claims_of("mixture", four, four.sample(n, generator), generator),
        _no_crossing(four, four.sample(n, generator)),
    ]


def claims_of(name: str, oracle: GaussianOracle | MixtureOracle, x0: Tensor, generator: torch.Generator) -> list[Claim]:
    """The claims of :func:`flow_claims` for any data with points x0 (n, D), float64."""
    end = add_noise(x0, x0.new_full((len(x0),), SIGMA_MIN), torch.randn(x0.shape, dtype=x0.dtype, generator=generator))
    outward = trajectory(oracle.denoiser, end, LEVELS)
    t = x0.new_tensor(LEVELS[1:]).repeat_interleave(len(x0))
    f = oracle.consistency(outward[1:].flatten(0, 1), t).reshape(-1, *x0.shape)
    there_and_back = trajectory(oracle.denoiser, end, (SIGMA_MIN, SIGMA_MAX, SIGMA_MIN))[-1]
    direct = trajectory(oracle.denoiser, outward[-1], (SIGMA_MAX, SIGMA_MIN))[-1]
    by_way = trajectory(oracle.denoiser, outward[-1], (SIGMA_MAX, 1.0, SIGMA_MIN))[-1]
    return [
        Claim(f"{name}: f is the same all along {len(x0):,} trajectories", _largest(f - end), 1e-6),
        Claim(f"{name}: out to T and back to the start", _largest(there_and_back - end), 1e-6),
        Claim(f"{name}: from T at once = by way of t = 1", _largest(direct - by_way), 1e-6),
        Claim(f"{name}: slope of f at t = eps is -v: relative difference", _slope_error(oracle, end), 0.01),
    ]


def _slope_error(oracle: GaussianOracle | MixtureOracle, x: Tensor) -> float:
    """The finite difference (f(x, t) - x) / (t - eps) just above eps, against the ODE's right side at eps."""
    eps = x.new_full((len(x),), SIGMA_MIN)
    t = 1.001 * eps
    v = slope(oracle.denoiser, x, eps)
    difference = (oracle.consistency(x, t) - x) / (t - eps)[:, None]
    return float((difference + v).norm() / v.norm())


def _no_crossing(oracle: MixtureOracle, x: Tensor) -> Claim:
    """Distances between each trajectory and the next, at all levels, against the bounds on both sides."""
    distance = (trajectory(oracle.denoiser, x, LEVELS).diff(dim=1)).norm(dim=2)
    t, r = x.new_tensor(LEVELS)[:, None], x.new_tensor(SIGMA_MIN)
    lower, upper = separation_bounds(RADIUS, STD, t, r)
    ratio = distance / distance[0]
    worst = torch.maximum(ratio / upper, lower / ratio)[1:]  # at the first level all are 1
    return Claim("mixture: distance of two trajectories / its bounds", _largest(worst), ATTAINED)


def _largest(x: Tensor) -> float:
    return x.abs().max().item()
