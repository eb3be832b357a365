"""Single steps of the probability-flow ODE, whose velocity is the path's at the estimated data and noise.

On the VE path it reads dx/dsigma = (x - D(x, sigma)) / sigma (EDM, Eq. 1 with s = 1, sigma = t).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cm_lightning.core.noise import expand
from cm_lightning.core.path import VE, Path

#: x (B, ...), t (B,) -> the estimate of the clean image, (B, ...).
Denoiser = Callable[[Tensor, Tensor], Tensor]

#: (denoiser, x (B, ...), t (B,), q (B,)) -> x at q.
Step = Callable[[Denoiser, Tensor, Tensor, Tensor], Tensor]

_VE = VE()


def slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """dx/dsigma on the VE path at x (B, ...), sigma (B,) > 0."""
    return (x - denoiser(x, sigma)) / expand(sigma, x)


def euler_step(denoiser: Denoiser, x: Tensor, t: Tensor, q: Tensor, path: Path = _VE) -> Tensor:
    """A first-order step, one evaluation: deterministic DDIM, which is Euler's on the VE path (EDM, Appendix C.1)."""
    return path.step(x, path.noise(x, denoiser(x, t), t), t, q)


def heun_step(denoiser: Denoiser, x: Tensor, t: Tensor, q: Tensor, path: Path = _VE) -> Tensor:
    """A second-order step, two evaluations: the trapezoidal rule after an Euler step. Sigma must be above 0 at q.

    In units of VE the estimated noise is the slope, so on any path the mean of two noise estimates is the slope of the
    trapezoidal rule.
    """
    z = path.noise(x, denoiser(x, t), t)
    x_q = path.step(x, z, t, q)
    z_q = path.noise(x_q, denoiser(x_q, q), q)
    return path.step(x, (z + z_q) / 2, t, q)
