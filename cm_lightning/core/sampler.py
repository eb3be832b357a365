"""One-step and multistep sampling of a consistency function or a flow map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, karras_sigmas
from cm_lightning.core.path import Path
from cm_lightning.domains import COUNT, FRACTION, NON_NEGATIVE

#: x (B, ...), t (B,) -> the clean end point of the trajectory through x, (B, ...).
ConsistencyFunction = Callable[[Tensor, Tensor], Tensor]

#: x (B, ...), t (B,), r (B,) -> the point at level r of the trajectory through x, (B, ...): a flow map whose condition
#: is fixed.
Jump = Callable[[Tensor, Tensor, Tensor], Tensor]


def spread_sigmas(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> list[float]:
    """Noise levels for a number of steps: the Karras grid of steps + 1 levels without the last one."""
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


class Renewal:
    """The part of the noise that is redrawn between the jumps of a flow map: gamma-sampling (CTM, Algorithm 2).

    On the way from t to r a jump ends below r, where noise of variance (1 - gamma^2) sigma_r^2 is left, and fresh noise
    leads back to r. With gamma = 1 it ends at the clean image, which is :func:`multistep`.

    Args:
        gamma: the share of the noise, as a standard deviation, in [0, 1].
        path: the path of the levels.
        sigma_min: the level, in units of VE, at which trajectories end.
        renoise: draws fresh unit noise of the shape of its argument.
    """

    def __init__(
        self,
        gamma: float,
        path: Path,
        sigma_min: float = 0.0,
        renoise: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> None:
        FRACTION.check(self, gamma=gamma)
        NON_NEGATIVE.check(self, sigma_min=sigma_min)
        self.gamma, self.path, self.sigma_min, self.renoise = gamma, path, sigma_min, renoise

    def below(self, r: float) -> float:
        """The level at which a jump to r ends."""
        variance = self.sigma_min**2 + (1 - self.gamma**2) * self._fresh(r) ** 2
        return float(self.path.level(torch.tensor(variance, dtype=torch.float64).sqrt()))

    def noised(self, x: Tensor, r: float) -> Tensor:
        """The point at r for the end x (B, ...) of a jump."""
        alpha, alpha_below = (self._scales(level)[0] for level in (r, self.below(r)))
        return alpha * (x / alpha_below + self.gamma * self._fresh(r) * self.renoise(x))

    def _fresh(self, r: float) -> float:
        alpha, sigma = self._scales(r)
        fresh: float = max((sigma / alpha) ** 2 - self.sigma_min**2, 0.0) ** 0.5
        return fresh

    def _scales(self, level: float) -> tuple[float, float]:
        alpha, sigma = self.path.scales(torch.tensor(level, dtype=torch.float64))
        return float(alpha), float(sigma)


def follow(flow_map: Jump, x: Tensor, levels: Sequence[float], renewal: Renewal | None = None) -> Tensor:
    """Apply a flow map from level to level: len(levels) - 1 evaluations (MeanFlow, section 4.3).

    Args:
        flow_map: X(x, t, r).
        x: the start (B, ...), at the first level.
        levels: descending; the last is the level of the result, 0 for images.
        renewal: what noise is redrawn at the levels in between; none if None.
    """
    for t, r in pairwise(levels):
        between = renewal if renewal and renewal.gamma and r > levels[-1] else None
        end = between.below(r) if between else r
        x = flow_map(x, x.new_full((len(x),), t), x.new_full((len(x),), end))
        x = between.noised(x, r) if between else x
    return x
