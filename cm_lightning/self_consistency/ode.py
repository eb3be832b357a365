"""Trajectories of the probability-flow ODE, nearly to the precision of float64, by an adaptive solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from cm_lightning.core.solver import Denoiser


def trajectory(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float], rtol: float = 1e-10, atol: float = 1e-12
) -> Tensor:
    """The points at each level of the trajectories through x at sigmas[0]: dx/du = x - D(x, e^u) with u = ln sigma.

    Every piece between two levels is solved separately (DOP853, Hairer et al. 1993), so levels may rise, fall and turn.

    Args:
        denoiser: x (B, ...), sigma (B,) -> (B, ...), in float64.
        x: (B, ...) float64.
        sigmas: N levels above 0, in any order.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.

    Returns:
        (N, B, ...) float64; the first entry is x.

    Raises:
        ArithmeticError: the solver did not find a step that is small enough.
    """

    def dx_du(u: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        point = torch.from_numpy(flat).view_as(x)
        slope: NDArray[np.float64] = (point - denoiser(point, x.new_full((len(x),), math.exp(u)))).flatten().numpy()
        return slope

    points = [x]
    for sigma, sigma_next in pairwise(sigmas):
        span = math.log(sigma), math.log(sigma_next)
        solution = solve_ivp(dx_du, span, points[-1].flatten().numpy(), method="DOP853", rtol=rtol, atol=atol)
        if not solution.success:
            raise ArithmeticError(f"no trajectory from sigma {sigma:g} to {sigma_next:g}: {solution.message}")
        points.append(torch.from_numpy(solution.y[:, -1].copy()).view_as(x))
    return torch.stack(points)
