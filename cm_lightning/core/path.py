"""Paths, on which noise is mixed into data: x_t = alpha(t) x + sigma(t) z, with z of unit variance.

A level is called sigma on the VE path and t on the others. On every path ``sigma / alpha`` is the level in the units of
VE, which translates the levels of one path to those of another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cm_lightning.core.noise import SIGMA_DATA, expand
from cm_lightning.domains import POSITIVE
from cm_lightning.recording import Recorded


class Path(Recorded, ABC):
    """A pair of scales and their rates of change. Levels t are (B,), points (B, ...)."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t (B,), each (B,)."""

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt) at t (B,), each (B,)."""

    @abstractmethod
    def level(self, sigma: Tensor) -> Tensor:
        """The t (B,) at which sigma / alpha equals the given noise level (B,) of EDM."""

    def point(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The point alpha x + sigma z for data x, unit noise z (B, ...), t (B,); in the dtype of x."""
        return _mix(self.scales(t), x, z)

    def velocity(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The derivative of :meth:`point` in t, for the same x and z."""
        return _mix(self.rates(t), x, z)

    def noise(self, x_t: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The z that leads from x to x_t: (x_t - alpha x) / sigma; sigma must be above 0."""
        alpha, sigma = self.scales(t)
        return ((x_t - expand(alpha, x) * x) / expand(sigma, x)).to(x.dtype)

    def step(self, x_t: Tensor, z: Tensor, t: Tensor, q: Tensor) -> Tensor:
        """Step from t to q, holding fixed the noise z and the data that x_t and z imply.

        This is the deterministic DDIM step (Song et al. 2021, Eq. 12 with eta = 0); where alpha = 1 it is Euler's.
        """
        (alpha, sigma), (alpha_q, sigma_q) = self.scales(t), self.scales(q)
        ratio = alpha_q / alpha
        return _mix((ratio, sigma_q - ratio * sigma), x_t, z)


def _mix(weights: tuple[Tensor, Tensor], x: Tensor, z: Tensor) -> Tensor:
    a, b = weights
    return (expand(a, x) * x + expand(b, x) * z).to(x.dtype)


class VE(Path):
    """x + t z: the path of EDM and CM, on which t is sigma itself."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def level(self, sigma: Tensor) -> Tensor:
        return sigma

    def point(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        return (x + expand(t, x) * z).to(x.dtype)  # without a product by 1


class TrigFlow(Path):
    """cos(t) x + sin(t) sigma_data z for t in [0, pi/2] (sCM, Lu & Song 2024, section 3).

    sigma = sigma_data tan t in the units of VE.

    Args:
        sigma_data: standard deviation of the data.
    """

    def __init__(self, sigma_data: float = SIGMA_DATA) -> None:
        POSITIVE.check(self, sigma_data=sigma_data)
        self.sigma_data = sigma_data

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t.cos(), self.sigma_data * t.sin()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -t.sin(), self.sigma_data * t.cos()

    def level(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_data).atan()


class Linear(Path):
    """(1 - t) x + t z for t in [0, 1]: rectified flow, flow matching, MeanFlow. sigma = t / (1 - t) in units of VE."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def level(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)


class DDPM(Path):
    """sqrt(alpha_bar) x + sqrt(1 - alpha_bar) z: the path of Stable Diffusion, where t is a timestep of 0 ... T - 1.

    Between two timesteps log alpha_bar is interpolated linearly. At a timestep the velocity is the mean of the
    velocities on the two intervals that meet there.

    Args:
        alphas_cumprod: (T,) alpha_bar, decreasing in t.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self._alpha_bar(t)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        logs, last = self._on(t).log(), len(self) - 2
        below, above = ((t.ceil().long() - 1), t.floor().long()) if t.is_floating_point() else (t - 1, t)
        rate = sum(logs[i + 1] - logs[i] for i in (below.clamp(0, last), above.clamp(0, last))) / 2
        alpha, sigma = self.scales(t)
        return alpha * rate / 2, -(alpha**2) * rate / (2 * sigma)

    def level(self, sigma: Tensor) -> Tensor:
        levels = ((1 - self._on(sigma)) / self._on(sigma)).sqrt().contiguous()
        above = torch.searchsorted(levels, sigma.contiguous()).clamp(1, len(self) - 1)
        log_a, log_b = ((1 + level**2).log() for level in (levels[above - 1], levels[above]))  # minus log alpha_bar
        return (above - 1) + ((1 + sigma**2).log() - log_a) / (log_b - log_a)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return self._on(t)[t]
        logs, below = self._on(t).log(), t.floor().long().clamp(0, len(self) - 2)
        return torch.lerp(logs[below], logs[below + 1], (t - below).to(logs.dtype)).exp()

    def _on(self, t: Tensor) -> Tensor:
        """The table on the device of t: it is moved once, not at every step."""
        if self.alphas_cumprod.device != t.device:
            self.alphas_cumprod = self.alphas_cumprod.to(t.device)
        return self.alphas_cumprod
