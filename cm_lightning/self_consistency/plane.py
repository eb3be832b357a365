"""The data of the exercise, whose scores are known in closed form: points in the plane, as they are and blurred."""

from __future__ import annotations

import torch
from torch import Tensor

from cm_lightning.core.oracle import MixtureOracle

#: The means are uneven on purpose: a symmetric mixture would hide mistakes.
MEANS = ((-0.7, -0.2), (0.0, 0.65), (0.65, 0.1), (-0.05, -0.6))
WEIGHTS = (0.35, 0.15, 0.3, 0.2)
#: The means lie in the ball of this radius.
RADIUS = max((x**2 + y**2) ** 0.5 for x, y in MEANS)
STD = 0.1


def mixture(std: float = STD, dtype: torch.dtype = torch.float64, steps: int = 1024) -> MixtureOracle:
    """Four Gaussians in the plane with an overall standard deviation near 0.5; std 0 leaves the four points."""
    means = torch.tensor(MEANS, dtype=dtype)
    stds = torch.full((len(means),), std, dtype=dtype)
    return MixtureOracle(means, stds, torch.tensor(WEIGHTS, dtype=dtype), steps=steps)


def line() -> MixtureOracle:
    """Three narrow Gaussians on the line, for figures of x against t."""
    means = torch.tensor([[-0.8], [0.1], [0.7]], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.25, 0.35], dtype=torch.float64)
    return MixtureOracle(means, torch.full((3,), 0.04, dtype=torch.float64), weights, steps=128)


def two_points() -> MixtureOracle:
    """Two points 2 RADIUS apart: the worst data in a ball."""
    means = torch.tensor([[-RADIUS, 0.0], [RADIUS, 0.0]], dtype=torch.float64)
    return MixtureOracle(means, torch.zeros(2, dtype=torch.float64))


def total_variance(oracle: MixtureOracle) -> tuple[Tensor, float]:
    """The mean of the data, (D,), and the trace of its covariance."""
    mean = oracle.weights @ oracle.means
    spread = (oracle.means - mean).square().sum(1) + oracle.means.shape[1] * oracle.stds**2
    return mean, float(oracle.weights @ spread)
