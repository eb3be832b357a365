"""The Lipschitz constant in x of the right side v = (x - D(x, t)) / t of the probability-flow ODE, and its bounds.

Its Jacobian is (I - C / t^2) / t with C = Cov[x0 | x_t = x], so bounds of the posterior covariance bound it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cm_lightning.core.solver import Denoiser


def jacobian(function: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """The derivative in x at each point, by automatic differentiation: x (B, D), sigma (B,) -> (B, D, D)."""
    x = x.detach().requires_grad_()
    y = function(x, sigma)
    rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(y.shape[1])]
    return torch.stack(rows, 1)


def ball_bound(radius: float, t: Tensor) -> Tensor:
    """The bound for data within a ball: |dv/dx| <= max(1, (R / t)^2 - 1) / t.

    Along any direction the data spread over at most 2 R, so their variance in that direction, given x, is at most R^2
    (Popoviciu 1935). Data of two points 2 R apart attain the bound half-way between them.
    """
    return ((radius / t) ** 2 - 1).clamp(min=1) / t


def smooth_bound(radius: float, std: float, t: Tensor) -> Tensor:
    """The bound for data within a ball plus N(0, s^2) noise: |dv/dx| <= t / V max(1, R^2 / V - 1), V = s^2 + t^2.

    It follows from the bound for the ball at noise sqrt(V): v of the blurred data at t is t / sqrt(V) times v of the
    data in the ball at sqrt(V). It stays finite as t -> 0.
    """
    blurred = (std**2 + t**2).sqrt()
    return t / blurred * ball_bound(radius, blurred)


def separation_bounds(radius: float, std: float, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bound of the ratio of two trajectories' distance at level t to that at level r < t.

    The eigenvalues of dv/dx lie between t / V (1 - R^2 / V) and t / V, V = s^2 + t^2; the bounds are the exponentials
    of their integrals (Groenwall's inequality). The lower bound is above 0: trajectories do not meet.
    """
    blurred_t, blurred_r = std**2 + t**2, std**2 + r**2
    upper = (blurred_t / blurred_r).sqrt()
    return upper * (radius**2 / 2 * (1 / blurred_t - 1 / blurred_r)).exp(), upper
