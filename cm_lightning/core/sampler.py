"""From noise to images: one-step and multistep sampling of a consistency function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, karras_sigmas
from cm_lightning.domains import COUNT

#: x (B, ...), sigma (B,) -> the clean end point of the trajectory through x, (B, ...).
ConsistencyFunction = Callable[[Tensor, Tensor], Tensor]


def spread_sigmas(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> list[float]:
    """Noise levels for a number of steps: the Karras grid of steps + 1 levels, but for its last."""
    COUNT.check(steps=steps)
    return karras_sigmas(steps + 1, sigma_min, sigma_max)[:-1].tolist()


def one_step(f: ConsistencyFunction, z: Tensor, sigma_max: float = SIGMA_MAX) -> Tensor:
    """f(sigma_max z, sigma_max): an image in one evaluation. z is unit noise (B, ...)."""
    return f(sigma_max * z, z.new_full((len(z),), sigma_max))


def multistep(
    f: ConsistencyFunction,
    z: Tensor,
    sigmas: Sequence[float],
    sigma_min: float = SIGMA_MIN,
    renoise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Multistep consistency sampling (CM, Algorithm 1): denoise, add noise of the next level, denoise again.

    Args:
        f: the consistency function; it is called len(sigmas) times.
        z: unit noise (B, ...), the start.
        sigmas: noise levels, descending, the first the level of the start; levels, not indices of a grid.
        sigma_min: f is the identity there.
        renoise: draws fresh unit noise of the shape of its argument.
    """
    x = one_step(f, z, sigmas[0])
    for tau in sigmas[1:]:
        noisy = x + max(tau**2 - sigma_min**2, 0.0) ** 0.5 * renoise(x)
        x = f(noisy, z.new_full((len(z),), tau))
    return x
