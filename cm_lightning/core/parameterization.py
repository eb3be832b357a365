"""Parameterizations: a denoiser D(x, t), a consistency function f(x, t) or a flow map X(x, t, r) from a network F.

All have EDM's form (Karras et al. 2022, Eq. 7): c_skip x + c_out F(c_in x, c_noise).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from cm_lightning.core.noise import SIGMA_DATA, SIGMA_MIN, expand
from cm_lightning.domains import NON_NEGATIVE, POSITIVE
from cm_lightning.recording import Recorded

#: (noisy image, noise label, class label or None) -> image; every backbone is one.
Network = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


class Coefficients(NamedTuple):
    """The four scalings, each (B,), in float32 or better; c_noise is (B, 2) where the network takes two times."""

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

    #: Noise level at and below which a map is the identity.
    sigma_min = 0.0

    def __init__(self, sigma_data: float = SIGMA_DATA, noise_scale: float = 0.25) -> None:
        POSITIVE.check(self, sigma_data=sigma_data, noise_scale=noise_scale)
        self.sigma_data = sigma_data
        self.noise_scale = noise_scale

    @abstractmethod
    def coefficients(self, t: Tensor, r: Tensor | None = None) -> Coefficients:
        """The four scalings at levels t (B,), and r (B,) for a flow map."""

    def output(
        self, network: Network, x: Tensor, t: Tensor, class_label: Tensor | None = None, r: Tensor | None = None
    ) -> Tensor:
        """The network's output F(c_in x, c_noise) at x (B, ...), t (B,): (B, ...)."""
        return _output(network, x, self.coefficients(t, r), class_label)

    def __call__(
        self, network: Network, x: Tensor, t: Tensor, class_label: Tensor | None = None, r: Tensor | None = None
    ) -> Tensor:
        """Evaluate the map: x (B, ...), t (B,) -> (B, ...) in the dtype of x."""
        return _evaluate(network, x, self.coefficients(t, r), class_label)

    def slopes(self, t: Tensor, r: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(d c_skip / dt, d c_out / dt) at t (B,), each (B,)."""

        def pair(t: Tensor) -> tuple[Tensor, Tensor]:
            c_skip, c_out, _, _ = self.coefficients(t, r)
            return c_skip, c_out

        slopes: tuple[Tensor, Tensor] = jvp(pair, (t,), (torch.ones_like(t),))[1]
        return slopes


class EDM(Parameterization):
    """The denoiser of Karras et al. 2022, Table 1: unit variance of input and training target at every sigma."""

    def coefficients(self, t: Tensor, r: Tensor | None = None) -> Coefficients:
        t, sd = _at_least_float32(t), self.sigma_data
        norm = (t**2 + sd**2).sqrt()
        return Coefficients(sd**2 / norm**2, sd * t / norm, 1 / norm, self.noise_scale * t.log())


class BoundaryShifted(Parameterization):
    """The consistency function of CM, Appendix C: EDM's scalings shifted so that f(x, sigma) = x at sigma_min.

    Below sigma_min the function is also the identity, so q = 0 makes the clean image the target (ECT, section 3).
    With sigma_min = 0 it is EDM's denoiser.
    """

    def __init__(self, sigma_data: float = SIGMA_DATA, sigma_min: float = SIGMA_MIN, noise_scale: float = 0.25) -> None:
        super().__init__(sigma_data, noise_scale)
        NON_NEGATIVE.check(self, sigma_min=sigma_min)
        self.sigma_min = sigma_min

    def coefficients(self, t: Tensor, r: Tensor | None = None) -> Coefficients:
        # sigma_min is rounded to the dtype of t first, so that the shift is exactly 0 at the boundary in bfloat16
        eps = torch.tensor(self.sigma_min, dtype=t.dtype, device=t.device)
        t, eps = _at_least_float32(torch.maximum(t, eps)), _at_least_float32(eps)
        sd, norm = self.sigma_data, (t**2 + self.sigma_data**2).sqrt()
        c_skip = sd**2 / ((t - eps) ** 2 + sd**2)
        # a floor keeps the logarithm finite where sigma_min is 0; c_out is 0 there, so its value does not matter
        c_noise = self.noise_scale * t.clamp(min=1e-8).log()
        return Coefficients(c_skip, sd * (t - eps) / norm, 1 / norm, c_noise)


class Trigonometric(Parameterization):
    """The consistency function of sCM on the TrigFlow path: cos(t) x + sin(t) sigma_data F(x / sigma_data, c_noise).

    F has EDM's sign, opposite to the paper's: in units of VE this is EDM's denoiser, so it can start from the weights
    of a diffusion model (sCM, Eq. 6).

    Args:
        sigma_data: standard deviation of the data, the same as the path's.
        noise_scale: c_noise = noise_scale * ln sigma with sigma = sigma_data tan t, as the network of an EDM teacher
            expects; if None, c_noise = t, as in the paper for networks trained from scratch.
    """

    def __init__(self, sigma_data: float = SIGMA_DATA, noise_scale: float | None = 0.25) -> None:
        super().__init__(sigma_data, 1.0 if noise_scale is None else noise_scale)
        self.told_t = noise_scale is None

    def coefficients(self, t: Tensor, r: Tensor | None = None) -> Coefficients:
        t, sd = _at_least_float32(t), self.sigma_data
        # the floor is far below any level that is drawn; c_out is 0 at t = 0, where only the logarithm needs it
        c_noise = t if self.told_t else self.noise_scale * (sd * t.clamp(min=1e-8).tan()).log()
        return Coefficients(t.cos(), sd * t.sin(), torch.full_like(t, 1 / sd), c_noise)


class DenoiserJump(Parameterization):
    """The flow map of CTM on the VE path: X(x, t, r) = (r/t) x + (1 - r/t) g(x, t, r) (Kim et al. 2023, Eq. 5).

    It is a step of DDIM with a denoiser g that takes the end of the step into account; g has EDM's scalings, and at
    r = t it is the denoiser itself. Levels below sigma_min are raised to it, so X(x, t, 0) is the consistency function.

    The network takes two labels, c_noise of t and of r (B, 2): give it a
    :class:`~cm_lightning.backbones.embedding.JumpEmbedding`.

    Args:
        sigma_data, noise_scale: see :class:`Parameterization`.
        sigma_min: the level at which trajectories end.
    """

    def __init__(self, sigma_data: float = SIGMA_DATA, sigma_min: float = SIGMA_MIN, noise_scale: float = 0.25) -> None:
        super().__init__(sigma_data, noise_scale)
        POSITIVE.check(self, sigma_min=sigma_min)
        self.sigma_min = sigma_min

    def coefficients(self, t: Tensor, r: Tensor | None = None) -> Coefficients:
        t, r = (self._level(level) for level in (t, torch.zeros_like(t) if r is None else r))
        c_skip, c_out, c_in, _ = self._denoiser(t)
        rest = 1 - r / t
        c_noise = self.noise_scale * torch.stack([t, r], 1).log()
        return Coefficients(1 - rest * (1 - c_skip), rest * c_out, c_in, c_noise)

    def denoised(self, network: Network, x: Tensor, t: Tensor, class_label: Tensor | None = None) -> Tensor:
        """g(x, t, t), the denoiser: x (B, ...), t (B,) -> (B, ...) in the dtype of x."""
        return _evaluate(network, x, self._denoiser(self._level(t)), class_label)

    def _denoiser(self, t: Tensor) -> Coefficients:
        c_skip, c_out, c_in, c_noise = EDM(self.sigma_data, self.noise_scale).coefficients(t)
        return Coefficients(c_skip, c_out, c_in, torch.stack([c_noise, c_noise], 1))

    def _level(self, t: Tensor) -> Tensor:
        # rounded to the dtype of t first, as in BoundaryShifted
        return _at_least_float32(torch.maximum(t, torch.tensor(self.sigma_min, dtype=t.dtype, device=t.device)))


class AverageVelocity(Parameterization):
    """The flow map of MeanFlow on the linear path: X(x, t, r) = x - (t - r) u(x, t, r), u the network itself.

    The network takes two times, c_noise = (t, t - r) (B, 2), multiplied by a scale: give it a
    :class:`~cm_lightning.backbones.embedding.TwoTimesEmbedding`.

    Args:
        noise_scale: factor on both times.
    """

    def __init__(self, noise_scale: float = 1.0) -> None:
        super().__init__(1.0, noise_scale)

    def coefficients(self, t: Tensor, r: Tensor | None = None) -> Coefficients:
        t = _at_least_float32(t)
        gap = t if r is None else t - r
        c_noise = self.noise_scale * torch.stack([t, gap], 1)
        return Coefficients(torch.ones_like(t), -gap, torch.ones_like(t), c_noise)


class Map:
    """A network with its parameterization: X(x, t, r, c). For a consistency function r is the end of the trajectory.

    Args:
        parameterization: the scalings.
        network: the backbone, or a copy of it.
    """

    def __init__(self, parameterization: Parameterization, network: Network) -> None:
        self.parameterization, self.network = parameterization, network

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor:
        """The point at r (B,) of the trajectory through x (B, ...) at t (B,); c (B,) are class labels, or None."""
        return self.parameterization(self.network, x, t, c, r)

    def output(self, x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor:
        """The network's output F at x, t and r."""
        return self.parameterization.output(self.network, x, t, c, r)

    def velocity(self, x: Tensor, t: Tensor, c: Any = None) -> Tensor:
        """dX/dr at r = t, which for an average velocity is u(x, t, t)."""
        return self.output(x, t, t, c)


def _evaluate(network: Network, x: Tensor, c: Coefficients, class_label: Tensor | None) -> Tensor:
    F = _output(network, x, c, class_label)
    return expand(c.c_skip, x).to(x.dtype) * x + expand(c.c_out, x).to(x.dtype) * F.to(x.dtype)


def _output(network: Network, x: Tensor, c: Coefficients, class_label: Tensor | None) -> Tensor:
    return network(expand(c.c_in, x).to(x.dtype) * x, c.c_noise.to(x.dtype), class_label)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
