"""From noise to images: one-step and multistep sampling of a consistency function or a flow map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, karras_sigmas
from cm_lightning.domains import COUNT

#: x (B, ...), t (B,) -> the clean end point of the trajectory through x, (B, ...).
ConsistencyFunction = Callable[[Tensor, Tensor], Tensor]

#: x (B, ...), t (B,), r (B,) -> the point at level r of the trajectory through x, (B, ...): a flow map whose condition
#: is fixed.
Jump = Callable[[Tensor, Tensor, Tensor], Tensor]


def spread_sigmas(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> list[float]:
    """Noise levels for a number of steps: the Karras grid of steps + 1 levels without its last."""
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
        sigmas: noise levels (not indices of a grid), descending; the first is the level of the start.
        sigma_min: f is the identity there.
        renoise: draws fresh unit noise of the shape of its argument.
    """
    return denoise_and_noise(f, sigmas[0] * z, sigmas, fresh_noise(sigma_min, renoise))


def fresh_noise(
    sigma_min: float = SIGMA_MIN, renoise: Callable[[Tensor], Tensor] = torch.randn_like
) -> Callable[[Tensor, float], Tensor]:
    """Map an end point x (B, ...) of a trajectory and a level tau to x + sqrt(tau^2 - sigma_min^2) z, z fresh."""

    def noised(x: Tensor, tau: float) -> Tensor:
        scale: float = max(tau**2 - sigma_min**2, 0.0) ** 0.5
        return x + scale * renoise(x)

    return noised


def denoise_and_noise(
    f: ConsistencyFunction, x: Tensor, levels: Sequence[float], noised: Callable[[Tensor, float], Tensor]
) -> Tensor:
    """The loop of :func:`multistep` on any path: CM, Algorithm 1; LCM, Algorithm 3.

    Args:
        f: the consistency function; it is called len(levels) times.
        x: the start (B, ...), at the first level.
        levels: descending; integers are timesteps, passed on as int64.
        noised: maps a clean x and a level to the point at that level, under fresh noise.
    """
    for i, level in enumerate(levels):
        dtype = torch.long if isinstance(level, int) else x.dtype
        x = f(noised(x, level) if i else x, x.new_full((len(x),), level, dtype=dtype))
    return x


def follow(flow_map: Jump, x: Tensor, levels: Sequence[float]) -> Tensor:
    """Apply a flow map from level to level: len(levels) - 1 evaluations, without fresh noise (MeanFlow, section 4.3).

    Args:
        flow_map: X(x, t, r).
        x: the start (B, ...), at the first level.
        levels: descending; the last is the level of the result, 0 for images.
    """
    for t, r in pairwise(levels):
        x = flow_map(x, x.new_full((len(x),), t), x.new_full((len(x),), r))
    return x
