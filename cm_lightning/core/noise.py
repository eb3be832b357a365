"""Noise levels: the Karras grid and the densities that training draws from.

A noise level is called sigma, the standard deviation of the noise in ``x + sigma z`` (EDM, Karras et al. 2022).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cm_lightning.domains import FINITE, INTEGER, POSITIVE, SHARE, check_ascending
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
SIGMA_DATA = 0.5

#: What draws unit noise: a generator of torch, or a function of the shape.
Source: TypeAlias = torch.Generator | Callable[[Sequence[int]], Tensor]


def check_levels(owner: object, sigma_min: float, sigma_max: float) -> None:
    """Raise ConfigError, which names the owner's class, unless 0 < sigma_min < sigma_max."""
    POSITIVE.check(owner, sigma_min=sigma_min, sigma_max=sigma_max)
    check_ascending(owner, sigma_min=sigma_min, sigma_max=sigma_max)


def karras_sigmas(n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0) -> Tensor:
    """The n noise levels of EDM Eq. 5 without its closing zero: (n,) float64, from sigma_max down to sigma_min.

    The end points are exact. Papers on consistency models number the same grid upwards (CM, section 2).

    Raises:
        ConfigError: fewer than two levels, or not 0 < sigma_min < sigma_max.
    """
    INTEGER.check(n=n)
    FINITE.check(sigma_min=sigma_min, sigma_max=sigma_max)
    POSITIVE.check(rho=rho)
    if n < 2 or not 0 < sigma_min < sigma_max:
        raise ConfigError(f"a grid needs n >= 2 and 0 < sigma_min < sigma_max, got {n}, {sigma_min}, {sigma_max}")
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas: Tensor = (high + ramp * (low - high)) ** rho
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to multiply a batch x of any rank."""
    columns: Tensor = sigma.reshape([-1] + [1] * (x.ndim - 1))
    return columns


def add_noise(x: Tensor, sigma: Tensor, z: Tensor) -> Tensor:
    """The sum x + sigma z in the dtype of x (B, ...); sigma (B,), z (B, ...)."""
    return (x + expand(sigma, x) * z).to(x.dtype)


def unit_noise(
    shape: Sequence[int],
    generator: Source | Sequence[Source] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """N(0, 1) noise (B, ...), drawn on the generator's device.

    With a sequence of B generators each sample has its own, so it does not depend on the batch it is drawn in.
    """
    if callable(generator):
        return generator(shape).to(device, dtype)
    if isinstance(generator, torch.Generator):
        return torch.randn(*shape, generator=generator, device=generator.device).to(device, dtype)
    if generator is None:
        return torch.randn(*shape, device=device, dtype=dtype)
    return torch.cat([unit_noise([1, *shape[1:]], one, device, dtype) for one in generator])


def generators(seed: int, samples: Iterable[int]) -> list[torch.Generator]:
    """One generator for each sample number under a seed, for :func:`unit_noise`."""
    return [torch.Generator().manual_seed(derived_seed(seed, i)) for i in samples]


def derived_seed(seed: int, stream: int) -> int:
    """A separate seed for each of a million streams; torch's CPU generator uses only 32 bits."""
    return (seed + 1_000_003 * (stream + 1)) % 2**32


class LogNormal(Recorded):
    """ln sigma ~ N(mean, std^2). EDM trains with (-1.2, 1.2), iCT and ECT with (-1.1, 2.0): the mean is negative.

    Draws are cut to [sigma_min, sigma_max], the domain of the consistency function.
    """

    def __init__(
        self, mean: float = -1.1, std: float = 2.0, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX
    ) -> None:
        FINITE.check(self, mean=mean)
        POSITIVE.check(self, std=std)
        check_levels(self, sigma_min, sigma_max)
        self.mean, self.std = mean, std
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def sample(self, n: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Tensor:
        """Draw n noise levels, (n,) float32."""
        normal = torch.randn(n, dtype=torch.float32, device=device, generator=generator)
        return (self.mean + self.std * normal).exp().clamp(self.sigma_min, self.sigma_max)


class LogNormalAndHigh(LogNormal):
    """Half of the draws as :class:`LogNormal`, half from the upper part of a Karras grid (CTM, appendix).

    Otherwise a network that learns jumps as well as denoising would forget to denoise at high noise levels.

    Args:
        mean, std, sigma_min, sigma_max: see :class:`LogNormal`; the defaults are EDM's.
        part: the part of the grid, from sigma_max down, in (0, 1].
        rho: exponent of the grid.
    """

    def __init__(
        self,
        mean: float = -1.2,
        std: float = 1.2,
        part: float = 0.7,
        sigma_min: float = SIGMA_MIN,
        sigma_max: float = SIGMA_MAX,
        rho: float = 7.0,
    ) -> None:
        super().__init__(mean, std, sigma_min, sigma_max)
        SHARE.check(self, part=part)
        POSITIVE.check(self, rho=rho)
        self.part, self.rho = part, rho

    def sample(self, n: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        where, which = torch.rand(2, n, dtype=torch.float32, device=device, generator=generator)
        upper = (high + self.part * where * (low - high)) ** self.rho
        normal = super().sample(n, device, generator)
        return torch.where(which < 0.5, upper.clamp(self.sigma_min, self.sigma_max), normal)


class LogitNormal(Recorded):
    """ln(t / (1 - t)) ~ N(mean, std^2), on the linear path: MeanFlow trains with (-0.4, 1.0).

    In units of VE, where sigma = t / (1 - t), ln sigma is normal.
    """

    def __init__(self, mean: float = -0.4, std: float = 1.0) -> None:
        FINITE.check(self, mean=mean)
        POSITIVE.check(self, std=std)
        self.mean, self.std = mean, std

    def sample(self, n: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Tensor:
        """Draw n levels in (0, 1), (n,) float32."""
        normal = torch.randn(n, dtype=torch.float32, device=device, generator=generator)
        return (self.mean + self.std * normal).sigmoid()


class UniformTime(Recorded):
    """t uniform in (0, 1), on the linear path: self-distillation of flow maps trains with it."""

    def sample(self, n: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Tensor:
        """Draw n levels, (n,) float32."""
        return torch.rand(n, dtype=torch.float32, device=device, generator=generator)


class IntervalDensity(Recorded, ABC):
    """Probabilities of the N-1 intervals of a descending grid, from which training draws."""

    @abstractmethod
    def probabilities(self, sigmas: Tensor) -> Tensor:
        """(N,) descending noise levels -> (N-1,) probabilities; entry i belongs to [sigmas[i+1], sigmas[i]]."""


class UniformIntervals(IntervalDensity):
    """The same probability for every interval (CM, Algorithms 2 and 3)."""

    def probabilities(self, sigmas: Tensor) -> Tensor:
        return torch.full((len(sigmas) - 1,), 1 / (len(sigmas) - 1), dtype=sigmas.dtype)


class LogNormalIntervals(IntervalDensity):
    """The mass of ln sigma ~ N(mean, std^2) within each interval, renormalised (iCT, Eq. 10)."""

    def __init__(self, mean: float = -1.1, std: float = 2.0) -> None:
        FINITE.check(self, mean=mean)
        POSITIVE.check(self, std=std)
        self.mean, self.std = mean, std

    def probabilities(self, sigmas: Tensor) -> Tensor:
        cdf = torch.erf((sigmas.log() - self.mean) / (math.sqrt(2) * self.std))
        mass = cdf[:-1] - cdf[1:]
        return mass / mass.sum()
