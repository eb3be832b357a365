"""Sampling along the probability-flow ODE: the diffusion baselines for one-step methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor

from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, check_levels, karras_sigmas
from cm_lightning.core.solver import Denoiser, Step, euler_step, heun_step
from cm_lightning.domains import INTEGER, POSITIVE, Domain
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded

#: The lowest level of DDPM's schedule is a little above 0.01.
_ON_DDPM = Domain("a finite number of at least 0.02", lambda value: value >= 0.02)


def integrate(step: Step, denoiser: Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
    """Follow the ODE from sigmas[0] z down the levels, with an Euler step from the last of them to 0.

    Args:
        step: :func:`euler_step` or :func:`heun_step`.
        denoiser: x (B, ...), sigma (B,) -> (B, ...).
        z: unit noise (B, ...).
        sigmas: (N,) noise levels, descending, above 0.
    """
    levels = sigmas.to(z)[:, None].expand(-1, len(z))
    x = sigmas[0].to(z) * z
    for sigma, sigma_next in pairwise(levels):
        x = step(denoiser, x, sigma, sigma_next)
    return denoiser(x, levels[-1])  # an Euler step to 0 is the denoiser itself


def ddpm_sigmas(n: int, sigma_max: float = SIGMA_MAX) -> Tensor:
    """The levels of n evenly spaced timesteps of DDPM's linear schedule (Ho et al. 2020): (n,) float64, descending.

    sigma = sqrt((1 - alpha_bar) / alpha_bar). The first timestep is the last of 1,000 whose level is at most
    sigma_max (that of 999 is 157): the network was not trained above it.
    """
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
    first = int((sigmas <= sigma_max).sum()) - 1
    timesteps = torch.linspace(first, first / n, n, dtype=torch.float64).round().long()
    return sigmas[timesteps]


class ODESampler(Recorded, ABC):
    """A solver with its noise levels, for a given number of evaluations of the network (NFE)."""

    #: The usual number of evaluations.
    default_nfe = 50

    @abstractmethod
    def sigmas(self, nfe: int) -> Tensor:
        """The levels with which a sample costs ``nfe`` evaluations. Raises ConfigError if there are none."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        """Images from unit noise z (B, ...) through the levels."""


class Heun(ODESampler):
    """EDM's deterministic sampler (Karras et al. 2022, Algorithm 1): N levels cost 2N - 1 evaluations."""

    default_nfe = 35

    def __init__(self, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0) -> None:
        check_levels(self, sigma_min, sigma_max)
        POSITIVE.check(self, rho=rho)
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def sigmas(self, nfe: int) -> Tensor:
        INTEGER.check(nfe=nfe)
        if nfe < 3 or nfe % 2 == 0:
            raise ConfigError(f"Heun takes an odd number of evaluations, 2N - 1, of at least 3; got {nfe}")
        return karras_sigmas((nfe + 1) // 2, self.sigma_min, self.sigma_max, self.rho)

    def __call__(self, denoiser: Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        return integrate(heun_step, denoiser, z, sigmas)


class Euler(ODESampler):
    """Euler steps on the Karras grid: as many evaluations as levels."""

    def __init__(self, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0) -> None:
        check_levels(self, sigma_min, sigma_max)
        POSITIVE.check(self, rho=rho)
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def sigmas(self, nfe: int) -> Tensor:
        INTEGER.check(nfe=nfe)
        if nfe < 1:
            raise ConfigError(f"Euler takes at least one evaluation, got {nfe}")
        if nfe == 1:
            return torch.tensor([self.sigma_max], dtype=torch.float64)
        return karras_sigmas(nfe, self.sigma_min, self.sigma_max, self.rho)

    def __call__(self, denoiser: Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        return integrate(euler_step, denoiser, z, sigmas)


class DDIM(ODESampler):
    """DDIM with eta = 0 (Song et al. 2021): Euler steps on the levels of DDPM's linear schedule.

    In the space of x / sqrt(alpha_bar) = x0 + sigma z its update is Euler's (EDM, Appendix C.1).
    """

    def __init__(self, sigma_max: float = SIGMA_MAX) -> None:
        _ON_DDPM.check(self, sigma_max=sigma_max)
        self.sigma_max = sigma_max

    def sigmas(self, nfe: int) -> Tensor:
        INTEGER.check(nfe=nfe)
        if not 1 <= nfe <= 500:
            raise ConfigError(f"DDIM takes 1 to 500 evaluations, got {nfe}")
        return ddpm_sigmas(nfe, self.sigma_max)

    def __call__(self, denoiser: Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        return integrate(euler_step, denoiser, z, sigmas)
