"""The error of a trained consistency model against the exact f: at T for each number of levels, and over (x, t)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cm_lightning.core.ideal import distilled, trained
from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, karras_sigmas
from cm_lightning.core.oracle import MixtureOracle
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.self_consistency.claim import Claim
from cm_lightning.self_consistency.ode import trajectory
from cm_lightning.self_consistency.plane import mixture
from cm_lightning.self_consistency.students import train

#: What a run on two slow cores reaches with a margin: the mean error of one step from T, and its ratio to N = 3.
TOLERANCES = {"CD": (0.08, 0.15), "CT": (0.2, 0.4)}


@dataclass
class Comparison:
    """A method's model and the mean of |f_theta(x, T) - f(x, T)| over x ~ p_T for each number of levels."""

    method: str
    module: ConsistencyModule
    levels: list[int]
    errors: list[float]
    #: The same means for a network without approximation error.
    ideal: list[float]

    def f(self, x: Tensor, sigma: Tensor) -> Tensor:
        """f_theta with the final averaged weights, in float64: (B, 2), (B,) -> (B, 2)."""
        with torch.no_grad():
            return self.module.consistency_function(x.float(), sigma.float()).double()

    def claims(self) -> list[Claim]:
        """Claims about the boundary, which the scalings impose, and about what training reached."""
        x = mixture().means
        boundary = self.f(x, torch.full((len(x),), SIGMA_MIN)) - x
        name, (reached, fall) = f"{self.method}, trained", TOLERANCES[self.method]
        return [
            Claim(f"{name}: f_theta(x, eps) = x in float32", boundary.abs().max().item(), 1e-7),
            Claim(f"{name}: mean error from T at N = {self.levels[-1]}", self.errors[-1], reached),
            Claim(f"{name}: that error / the error at N = {self.levels[0]}", self.errors[-1] / self.errors[0], fall),
        ]


def compare(method: str, steps: int, n: int, seed: int) -> Comparison:
    """Train by ``CD`` or ``CT`` and measure on n points of p_T, the same for both methods."""
    module, stages = train(method, steps, seed)
    oracle, generator = mixture(), torch.Generator().manual_seed(seed)
    x = oracle.sample(n, generator)
    x = x + SIGMA_MAX * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    exact = trajectory(oracle.denoiser, x, (SIGMA_MAX, SIGMA_MIN))[-1]
    result = Comparison(method, module, [stage.n for stage in stages], [], [])
    for stage in stages:
        module.backbone = stage.backbone
        result.errors.append(_mean_distance(result.f(x, x.new_full((n,), SIGMA_MAX)), exact))
        result.ideal.append(_mean_distance(_ideal(method, oracle, x[: n // 4], stage.n, generator), exact[: n // 4]))
    return result


def _ideal(method: str, oracle: MixtureOracle, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    sigmas = karras_sigmas(n)
    if method == "CD":
        return distilled(oracle.denoiser, x, sigmas)
    return trained(oracle, x, sigmas, draws=64, generator=generator)


def _mean_distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm(dim=1).mean())
