"""The specifics of Stable Diffusion and latent consistency (LCM): predictions, timesteps, guidance.

A noisy latent is ``z_t = alpha_t z_0 + sigma_t epsilon`` with ``alpha_t^2 + sigma_t^2 = 1``; t counts from 0 to T - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cm_lightning.core.curriculum import Clock, Curriculum, Device, Times, to_the_end
from cm_lightning.core.noise import SIGMA_DATA, expand
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.path import DDPM
from cm_lightning.core.sampler import ConsistencyFunction, denoise_and_noise
from cm_lightning.domains import COUNT, INTEGER, POSITIVE
from cm_lightning.errors import ConfigError

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]


class LatentSchedule(DDPM):
    """The path of Stable Diffusion, and the meaning of a network's output on it.

    Args:
        alphas_cumprod: (T,) alpha_t^2, falling with t.
        prediction: what the network predicts: ``epsilon`` (SD 1.5, SDXL), ``v_prediction`` (SD 2.1, Salimans & Ho
            2022), or ``sample``, z_0 itself.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction: Prediction = "epsilon") -> None:
        super().__init__(alphas_cumprod)
        self.prediction = prediction

    def target(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """What a network should predict at ``point(x, epsilon, t)``; v = alpha epsilon - sigma x."""
        if self.prediction == "epsilon":
            return epsilon
        if self.prediction == "sample":
            return x
        alpha, sigma = self._scales(t, x)
        return alpha * epsilon - sigma * x

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a network's output at x_t (B, ...), t (B,) implies."""
        alpha, sigma = self._scales(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - sigma * output) / alpha
        return output if self.prediction == "sample" else alpha * x_t - sigma * output

    def _scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.scales(t)
        return expand(alpha, x).to(x.dtype), expand(sigma, x).to(x.dtype)


class ScaledBoundary:
    """f = c_skip z_t + c_out z_0, the consistency function of LCM, section 4.1: the identity at t = 0.

    It is :class:`BoundaryShifted` at the noise level ``scaling`` t, with the estimate of z_0 in place of the network.
    Beyond the first timesteps f is therefore nearly that estimate.

    Args:
        scaling: factor on the timesteps.
    """

    def __init__(self, scaling: float = 10.0) -> None:
        POSITIVE.check(self, scaling=scaling)
        self.scaling, self.shifted = scaling, BoundaryShifted(SIGMA_DATA, sigma_min=0.0)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) at timesteps t (B,)."""
        c_skip, c_out, _, _ = self.shifted.coefficients(self.scaling * t.float())
        return c_skip, c_out / SIGMA_DATA

    def __call__(self, z_t: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """The value of f at z_t (B, ...), t (B,), from the estimate of z_0 (B, ...)."""
        c_skip, c_out = self.coefficients(t)
        return expand(c_skip, z_t) * z_t + expand(c_out, z_t) * clean


def ddim_timesteps(n: int = 50, total: int = 1000) -> Tensor:
    """The n timesteps k - 1, 2k - 1, ..., total - 1 that LCM is distilled on, k = total / n: (n,) int64, ascending.

    Raises:
        ConfigError: n does not divide total.
    """
    INTEGER.check(timesteps=n)
    if n < 1 or total % n:
        raise ConfigError(f"{n} DDIM timesteps do not divide {total}: choose a divisor, such as the published 50")
    return torch.arange(1, n + 1) * (total // n) - 1


class Timesteps(Curriculum):
    """Draws t uniformly among :func:`ddim_timesteps`; q is the one below it, or 0 (LCM, Algorithm 1).

    Args:
        n: timesteps of the teacher's grid.
        total: T.
    """

    def __init__(self, n: int = 50, total: int = 1000) -> None:
        COUNT.check(self, n=n, total=total)
        self.grid, self.gap = ddim_timesteps(n, total), total // n

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: torch.Generator | None = None) -> Times:
        t = self.grid.to(device)[torch.randint(len(self.grid), (n,), device=device, generator=generator)]
        return to_the_end(t, (t - self.gap).clamp(min=0))


def lcm_timesteps(steps: int, n: int = 50, total: int = 1000) -> list[int]:
    """The timesteps to sample with, descending: every (n / steps)-th of :func:`ddim_timesteps`.

    Raises:
        ConfigError: not 1 <= steps <= n.
    """
    INTEGER.check(steps=steps)
    if not 1 <= steps <= n:
        raise ConfigError(f"steps must lie in 1 ... {n}, the timesteps that the model was distilled on; got {steps}")
    descending = ddim_timesteps(n, total).flip(0).tolist()
    return [descending[i * n // steps] for i in range(steps)]


def lcm_sample(
    f: ConsistencyFunction,
    schedule: LatentSchedule,
    z: Tensor,
    timesteps: Sequence[int],
    renoise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Multistep sampling of a latent consistency function (LCM, Algorithm 3): len(timesteps) evaluations.

    Args:
        f: (z_t (B, ...), t (B,)) -> the clean latent.
        schedule: the noise schedule.
        z: unit noise (B, C, h, w).
        timesteps: descending, the first near T - 1; see :func:`lcm_timesteps`.
        renoise: draws fresh unit noise of the shape of its argument.
    """

    def noised(x: Tensor, t: float) -> Tensor:
        return schedule.point(x, renoise(x), torch.full((len(x),), t, dtype=torch.long, device=x.device))

    return denoise_and_noise(f, z, timesteps, noised)
