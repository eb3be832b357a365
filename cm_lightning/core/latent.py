"""Diffusion over discrete timesteps, as Stable Diffusion has it, and the formulas of latent consistency (LCM).

A noisy latent is ``z_t = alpha_t z_0 + sigma_t epsilon`` with ``alpha_t^2 + sigma_t^2 = 1``; t counts from 0 to T - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cm_lightning.core.noise import SIGMA_DATA, expand
from cm_lightning.domains import INTEGER
from cm_lightning.errors import ConfigError

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]


class LatentSchedule:
    """The noise of each timestep, and what a network's output means there.

    Args:
        alphas_cumprod: (T,) alpha_t^2, falling with t.
        prediction: what the network predicts: ``epsilon`` (SD 1.5, SDXL), ``v_prediction`` (SD 2.1, Salimans & Ho
            2022), or ``sample``, z_0 itself.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction: Prediction = "epsilon") -> None:
        self.alphas_cumprod, self.prediction = alphas_cumprod, prediction

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) for timesteps t (B,), shaped to multiply a batch x (B, ...)."""
        if self.alphas_cumprod.device != t.device:
            self.alphas_cumprod = self.alphas_cumprod.to(t.device)
        alpha_squared = self.alphas_cumprod[t]
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
        return expand(alpha, x).to(x.dtype), expand(sigma, x).to(x.dtype)

    def add_noise(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """z_t = alpha_t x + sigma_t epsilon."""
        alpha, sigma = self.scales(t, x)
        return alpha * x + sigma * epsilon

    def target(self, x: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """What a network should predict at ``add_noise(x, t, epsilon)``; v = alpha epsilon - sigma x."""
        if self.prediction == "epsilon":
            return epsilon
        if self.prediction == "sample":
            return x
        alpha, sigma = self.scales(t, x)
        return alpha * epsilon - sigma * x

    def x0_and_epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latent and the noise that an output at x_t (B, ...), t (B,) amounts to."""
        alpha, sigma = self.scales(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - sigma * output) / alpha, output
        if self.prediction == "sample":
            return output, (x_t - alpha * output) / sigma
        return alpha * x_t - sigma * output, alpha * output + sigma * x_t

    def ddim_step(self, output: Tensor, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The deterministic DDIM step from t down to r: alpha_r x0 + sigma_r epsilon (LCM, Eq. 11)."""
        x0, epsilon = self.x0_and_epsilon(output, x_t, t)
        return self.add_noise(x0, r, epsilon)


def guided(conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """Classifier-free guidance c + w (c - u) with w (B,) = guidance_scale - 1: w = 0 is the condition alone.

    An output is linear in x0 and epsilon at the same x_t, so guiding it guides both (LCM, Eq. 13).
    """
    return conditional + expand(w, conditional).to(conditional.dtype) * (conditional - unconditional)


def ddim_timesteps(n: int = 50, total: int = 1000) -> Tensor:
    """The n timesteps k - 1, 2k - 1, ..., total - 1 with k = total / n, that LCM is distilled on: (n,) int64, rising.

    Raises:
        ConfigError: n does not divide total.
    """
    INTEGER.check(timesteps=n)
    if n < 1 or total % n:
        raise ConfigError(f"{n} DDIM timesteps do not divide {total}: choose a divisor, 50 as published")
    return torch.arange(1, n + 1) * (total // n) - 1


def lcm_timesteps(steps: int, n: int = 50, total: int = 1000) -> list[int]:
    """The timesteps of sampling in a number of steps, falling: every (n / steps)-th of :func:`ddim_timesteps`.

    Raises:
        ConfigError: not 1 <= steps <= n.
    """
    INTEGER.check(steps=steps)
    if not 1 <= steps <= n:
        raise ConfigError(f"steps must lie in 1 ... {n}, the timesteps that the model was distilled on; got {steps}")
    descending = ddim_timesteps(n, total).flip(0).tolist()
    return [descending[i * n // steps] for i in range(steps)]


def boundary(t: Tensor, scaling: float = 10.0, sigma_data: float = SIGMA_DATA) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of f = c_skip z_t + c_out x0 at timesteps t (B,): f is the identity at t = 0 (LCM, section 4.1).

    LCM takes ``scaling`` t as the noise level, so that beyond the first timesteps f is nearly x0.
    """
    s = scaling * t.float()
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s / (s**2 + sigma_data**2).sqrt()
    return c_skip, c_out


def guidance_embedding(w: Tensor, width: int = 256) -> Tensor:
    """Sines and cosines of 1000 w: (B,) -> (B, width), what the student's ``time_cond_proj`` takes (LCM, section 4.2).

    Raises:
        ConfigError: an odd width.
    """
    if width < 4 or width % 2:
        raise ConfigError(f"the guidance embedding needs an even width of at least 4, got {width}")
    half = width // 2
    frequencies = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half, device=w.device))
    angles = 1000.0 * w[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def huber(x: Tensor, y: Tensor, c: float = 0.001) -> Tensor:
    """Mean over each sample of sqrt((x - y)^2 + c^2) - c, by elements as in LCM's code: (B, ...) -> (B,)."""
    squared = (x - y).square()
    return (squared / ((squared + c**2).sqrt() + c)).flatten(1).mean(1)


def lcm_sample(
    f: Callable[[Tensor, Tensor], Tensor],
    schedule: LatentSchedule,
    z: Tensor,
    timesteps: Sequence[int],
    renoise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Multistep sampling of a latent consistency function (LCM, Algorithm 3): len(timesteps) evaluations.

    Args:
        f: (z_t (B, ...), t (B,)) -> the clean latent.
        schedule: of the noise.
        z: unit noise (B, C, h, w).
        timesteps: falling, the first near T - 1, :func:`lcm_timesteps`.
        renoise: draws fresh unit noise of the shape of its argument.
    """
    x = z
    for i, t in enumerate(timesteps):
        x = f(x, torch.full((len(z),), t, device=z.device))
        if i + 1 < len(timesteps):
            x = schedule.add_noise(x, torch.full((len(z),), timesteps[i + 1], device=z.device), renoise(x))
    return x
