"""One step of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma (EDM, Eq. 1 with s = 1, sigma = t)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cm_lightning.core.noise import expand

#: x (B, ...), sigma (B,) -> the estimate of the clean image, (B, ...).
Denoiser = Callable[[Tensor, Tensor], Tensor]

#: (denoiser, x (B, ...), sigma (B,), sigma_next (B,)) -> x at sigma_next.
Step = Callable[[Denoiser, Tensor, Tensor, Tensor], Tensor]


def slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """dx/dsigma at x (B, ...), sigma (B,) > 0."""
    return (x - denoiser(x, sigma)) / expand(sigma, x)


def euler_step(denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """First order, one evaluation. In this space it is the deterministic DDIM step (EDM, Appendix C.1)."""
    return x + expand(sigma_next - sigma, x) * slope(denoiser, x, sigma)


def heun_step(denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Second order, two evaluations: the trapezoidal rule after an Euler step. sigma_next must be above 0."""
    d = slope(denoiser, x, sigma)
    step = expand(sigma_next - sigma, x)
    d_next = slope(denoiser, x + step * d, sigma_next)
    return x + step * (d + d_next) / 2
