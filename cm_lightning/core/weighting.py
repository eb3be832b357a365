"""Weights w(t, r) of the consistency loss at a pair of noise levels t > r: (B,), (B,) -> (B,)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cm_lightning.core.noise import SIGMA_DATA
from cm_lightning.domains import NON_NEGATIVE, POSITIVE
from cm_lightning.recording import Recorded


def edm_weight(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2: EDM, Table 1."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


class Weighting(Recorded, ABC):
    """A weighting as an object, to be chosen and configured by class path."""

    @abstractmethod
    def __call__(self, t: Tensor, r: Tensor) -> Tensor:
        """(B,), (B,) -> (B,)."""


class Uniform(Weighting):
    """The weight w = 1 (CM)."""

    def __call__(self, t: Tensor, r: Tensor) -> Tensor:
        return torch.ones_like(t)


class InverseGap(Weighting):
    """The weight w = 1 / (t - r)^power; power 1 is iCT, Eq. 9, and ECT on CIFAR-10.

    The gap grows with t, so a power below 1 gives high noise levels more weight. A small network then learns faster to
    draw each class in one step from sigma_max.
    """

    def __init__(self, power: float = 1.0) -> None:
        NON_NEGATIVE.check(self, power=power)
        self.power = power

    def __call__(self, t: Tensor, r: Tensor) -> Tensor:
        return (t - r) ** -self.power


class InverseVariance(Weighting):
    """The weight w = :func:`edm_weight` at t, which ECT uses on ImageNet-64."""

    def __init__(self, sigma_data: float = SIGMA_DATA) -> None:
        POSITIVE.check(self, sigma_data=sigma_data)
        self.sigma_data = sigma_data

    def __call__(self, t: Tensor, r: Tensor) -> Tensor:
        return edm_weight(t, self.sigma_data)
