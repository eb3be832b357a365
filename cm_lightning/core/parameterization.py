"""From a network F to a denoiser D(x, sigma) or a consistency function f(x, sigma).

Both have EDM's form (Karras et al. 2022, Eq. 7): c_skip x + c_out F(c_in x, c_noise).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cm_lightning.core.noise import SIGMA_DATA, SIGMA_MIN, expand
from cm_lightning.domains import NON_NEGATIVE, POSITIVE
from cm_lightning.recording import Recorded

#: (noisy image, noise label, class label or None) -> image; every backbone is one.
Network = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


class Coefficients(NamedTuple):
    """Each (B,), of at least float32 precision."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Parameterization(Recorded, ABC):
    """The preconditioning around a network.

    Args:
        sigma_data: standard deviation of the data.
        noise_scale: c_noise = noise_scale * ln sigma. EDM uses 0.25; OpenAI's networks expect 250.
    """

    def __init__(self, sigma_data: float = SIGMA_DATA, noise_scale: float = 0.25) -> None:
        POSITIVE.check(self, sigma_data=sigma_data, noise_scale=noise_scale)
        self.sigma_data = sigma_data
        self.noise_scale = noise_scale

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The four scalings at noise levels sigma (B,)."""

    def __call__(self, network: Network, x: Tensor, sigma: Tensor, class_label: Tensor | None = None) -> Tensor:
        """X (B, ...), sigma (B,) -> (B, ...) in the dtype of x."""
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        F = network(expand(c_in, x).to(x.dtype) * x, c_noise.to(x.dtype), class_label)
        return expand(c_skip, x).to(x.dtype) * x + expand(c_out, x).to(x.dtype) * F.to(x.dtype)


class EDM(Parameterization):
    """The denoiser of Karras et al. 2022, Table 1: unit variance of input and training target at every sigma."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        t, sd = _at_least_float32(sigma), self.sigma_data
        norm = (t**2 + sd**2).sqrt()
        return Coefficients(sd**2 / norm**2, sd * t / norm, 1 / norm, self.noise_scale * t.log())


class BoundaryShifted(Parameterization):
    """The consistency function of CM, Appendix C: EDM's scalings shifted so that f(x, sigma) = x at sigma_min.

    Below sigma_min the function is the identity too, so r = 0 makes the clean image the target (ECT, section 3).
    With sigma_min = 0 it is EDM's denoiser.
    """

    def __init__(self, sigma_data: float = SIGMA_DATA, sigma_min: float = SIGMA_MIN, noise_scale: float = 0.25) -> None:
        super().__init__(sigma_data, noise_scale)
        NON_NEGATIVE.check(self, sigma_min=sigma_min)
        self.sigma_min = sigma_min

    def coefficients(self, sigma: Tensor) -> Coefficients:
        # sigma_min is rounded to the dtype of sigma first: only so is the shift exactly 0 at the boundary in bfloat16.
        eps = torch.tensor(self.sigma_min, dtype=sigma.dtype, device=sigma.device)
        t, eps = _at_least_float32(torch.maximum(sigma, eps)), _at_least_float32(eps)
        sd, norm = self.sigma_data, (t**2 + self.sigma_data**2).sqrt()
        c_skip = sd**2 / ((t - eps) ** 2 + sd**2)
        # a floor keeps the logarithm finite where sigma_min is 0; c_out is 0 there, so its value does not matter
        c_noise = self.noise_scale * t.clamp(min=1e-8).log()
        return Coefficients(c_skip, sd * (t - eps) / norm, 1 / norm, c_noise)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
