"""Data whose denoiser and consistency function are known, against which approximations are tested."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import log_ndtr

from cm_lightning.core.noise import SIGMA_MIN, expand
from cm_lightning.core.path import VE, Path
from cm_lightning.core.solver import slope
from cm_lightning.domains import COUNT, FINITE, NON_NEGATIVE, POSITIVE


class GaussianOracle:
    """Data N(mean, std^2) in every dimension, on any path.

    With V(t) = alpha^2 s^2 + sigma^2, the variance of x_t, everything is affine in x_t.

    Args:
        std: standard deviation s of the data.
        mean: mean m of the data.
        path: the path that the levels belong to.
        sigma_min: level at which trajectories end; if None, SIGMA_MIN on the VE path and 0 on the others.
    """

    def __init__(
        self, std: float = 0.5, mean: float = 0.0, path: Path | None = None, sigma_min: float | None = None
    ) -> None:
        self.path = path or VE()
        end = (SIGMA_MIN if isinstance(self.path, VE) else 0.0) if sigma_min is None else sigma_min
        POSITIVE.check(self, std=std)
        FINITE.check(self, mean=mean)
        NON_NEGATIVE.check(self, sigma_min=end)
        self.std, self.mean, self.sigma_min = std, mean, end

    def denoiser(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t] = m + alpha s^2 / V (x - alpha m) at x (B, ...), t (B,)."""
        alpha, variance = self.path.scales(t)[0], self._variance(t)
        return self.mean + expand(alpha * self.std**2 / variance, x) * self._centred(x, t)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt = alpha' m + V' / (2 V) (x - alpha m) of the probability-flow ODE."""
        (alpha, sigma), (alpha_rate, sigma_rate) = self.path.scales(t), self.path.rates(t)
        half = (alpha * alpha_rate * self.std**2 + sigma * sigma_rate) / self._variance(t)
        return expand(alpha_rate, x) * self.mean + expand(half, x) * self._centred(x, t)

    def flow(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The point at level r of the trajectory through x at level t."""
        growth = (self._variance(r) / self._variance(t)).sqrt()
        return expand(self.path.scales(r)[0], x) * self.mean + expand(growth, x) * self._centred(x, t)

    def average_velocity(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The average velocity (x - flow(x, t, r)) / (t - r); where r = t, the velocity itself (MeanFlow, Eq. 3)."""
        gap = torch.where(t == r, 1.0, t - r)
        mean = (x - self.flow(x, t, r)) / expand(gap, x)
        return torch.where(expand(t == r, x), self.velocity(x, t), mean)

    def consistency(self, x: Tensor, t: Tensor) -> Tensor:
        """The end of the trajectory through x at t; on VE with m = 0, x sqrt((s^2 + eps^2) / (s^2 + sigma^2))."""
        return self.flow(x, t, torch.full_like(t, self.sigma_min))

    def _variance(self, t: Tensor) -> Tensor:
        alpha, sigma = self.path.scales(t)
        return alpha**2 * self.std**2 + sigma**2

    def _centred(self, x: Tensor, t: Tensor) -> Tensor:
        return x - expand(self.path.scales(t)[0], x) * self.mean


class Posterior(NamedTuple):
    """The distribution of x0 given a noisy point: a mixture of isotropic Gaussians for each of B points."""

    #: (B, K) responsibilities.
    weights: Tensor
    #: (B, K, D).
    means: Tensor
    #: (B, K), the same for every coordinate.
    variances: Tensor

    def mean(self) -> Tensor:
        """E[x0 | x], (B, D)."""
        return (self.weights[..., None] * self.means).sum(1)

    def covariance(self) -> Tensor:
        """Cov[x0 | x], (B, D, D): the mean of the components' covariances plus the covariance of their means."""
        offset = self.means - self.mean()[:, None]
        between = torch.einsum("bk,bki,bkj->bij", self.weights, offset, offset)
        within = (self.weights * self.variances).sum(1)
        return between + within[:, None, None] * torch.eye(offset.shape[-1]).to(between)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of x0 for each point, (B, D)."""
        k = torch.multinomial(self.weights, 1, generator=generator)[:, 0]
        rows = torch.arange(len(k))
        means, stds = self.means[rows, k], self.variances[rows, k].sqrt()
        return means + stds[:, None] * torch.randn(means.shape, dtype=means.dtype, generator=generator)


class Trajectories(ABC):
    """Data with an exact denoiser on the VE path, whose ODE is solved accurately.

    Args:
        sigma_min: noise level eps at which trajectories end.
        steps: Runge-Kutta steps of :meth:`flow` and :meth:`consistency`.
    """

    def __init__(self, sigma_min: float, steps: int) -> None:
        POSITIVE.check(self, sigma_min=sigma_min)
        COUNT.check(self, steps=steps)
        self.sigma_min, self.steps = sigma_min, steps

    @abstractmethod
    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] for x (B, D), sigma (B,)."""

    def flow(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The point at sigma_next of the trajectory through x at sigma: fourth-order Runge-Kutta in u = ln sigma."""
        u, h = sigma.log(), (sigma_next.log() - sigma.log()) / self.steps

        def dx_du(x: Tensor, u: Tensor) -> Tensor:
            return expand(u.exp(), x) * slope(self.denoiser, x, u.exp())

        for _ in range(self.steps):
            k1 = dx_du(x, u)
            k2 = dx_du(x + expand(h / 2, x) * k1, u + h / 2)
            k3 = dx_du(x + expand(h / 2, x) * k2, u + h / 2)
            k4 = dx_du(x + expand(h, x) * k3, u + h)
            x = x + expand(h / 6, x) * (k1 + 2 * k2 + 2 * k3 + k4)
            u = u + h
        return x

    def consistency(self, x: Tensor, sigma: Tensor) -> Tensor:
        """f(x, sigma) for x (B, D), sigma (B,)."""
        return self.flow(x, sigma, torch.full_like(sigma, self.sigma_min))


class MixtureOracle(Trajectories):
    """A mixture of isotropic Gaussians with an exact denoiser and an accurate ODE solution as consistency function.

    Args:
        means: (K, D).
        stds: (K,) standard deviations; 0 is a point mass.
        weights: (K,) probabilities; equal if None.
        sigma_min: see :class:`Trajectories`.
        steps: see :class:`Trajectories`; the default is accurate to about 1e-9 in float64.
    """

    def __init__(
        self,
        means: Tensor,
        stds: Tensor,
        weights: Tensor | None = None,
        sigma_min: float = SIGMA_MIN,
        steps: int = 1024,
    ) -> None:
        super().__init__(sigma_min, steps)
        self.means, self.stds = means, stds
        self.weights = torch.full_like(stds, 1 / len(stds)) if weights is None else weights

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of the data, (n, D)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], dtype=self.means.dtype, generator=generator)
        return self.means[k] + self.stds[k, None] * z

    def posterior(self, x: Tensor, sigma: Tensor) -> Posterior:
        """The posterior p(x0 | x) for x (B, D), sigma (B,): again a mixture of isotropic Gaussians."""
        variance = self.stds**2 + sigma[:, None] ** 2
        offset = x[:, None] - self.means
        log_density = -offset.square().sum(-1) / (2 * variance) - self.means.shape[1] / 2 * variance.log()
        shrinkage = self.stds**2 / variance
        return Posterior(
            (self.weights.log() + log_density).softmax(1),
            self.means + shrinkage[..., None] * offset,
            shrinkage * sigma[:, None] ** 2,
        )

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] for x (B, D), sigma (B,): the components' posterior means, weighted by their responsibilities."""
        return self.posterior(x, sigma).mean()


class BoxesOracle(Trajectories):
    """Points that are uniform in boxes of one size, such as a checkerboard, with an exact denoiser.

    Args:
        centres: (K, D) centres of the boxes, which have equal probabilities.
        half: half the side of a box, above 0.
        sigma_min, steps: see :class:`Trajectories`.
    """

    def __init__(self, centres: Tensor, half: float, sigma_min: float = SIGMA_MIN, steps: int = 1024) -> None:
        POSITIVE.check(self, half=half)
        super().__init__(sigma_min, steps)
        self.centres, self.half = centres, half

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] for x (B, D), sigma (B,): the means of truncated Gaussians, weighted by the boxes' masses."""
        offset = (self.centres - x[:, None]) / sigma[:, None, None]
        half = (self.half / sigma)[:, None, None]
        # (low, high) and (-high, -low) have the same mass, and computing that of the lower one avoids cancellation
        side = offset.sign()
        high, low = -side * offset + half, -side * offset - half
        upper, lower = log_ndtr(high), log_ndtr(low)
        log_mass = upper + (-(lower - upper).exp()).log1p()
        shift = side * (_density(high, log_mass) - _density(low, log_mass))
        means = x[:, None] + expand(sigma, shift) * shift
        weights: Tensor = log_mass.sum(-1).softmax(1)
        return (weights[..., None] * means).sum(1)


def _density(z: Tensor, log_mass: Tensor) -> Tensor:
    """The normal density at z, divided by a mass."""
    return torch.exp(-z.square() / 2 - math.log(2 * math.pi) / 2 - log_mass)
