"""Losses of the difference Delta between a network's output and its target, for continuous-time methods."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from cm_lightning.domains import COUNT, NON_NEGATIVE
from cm_lightning.recording import Recorded


class Residual(Recorded, nn.Module, ABC):
    """Maps Delta (B, ...) at levels t and r (B,) to a scalar; the network learns from its gradient in Delta."""

    @abstractmethod
    def each(self, difference: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The loss of each sample, (B,)."""

    def forward(self, difference: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The mean of the samples' losses."""
        return self.each(difference, t, r).mean()


class SquaredError(Residual):
    """The mean of Delta^2 over samples and their D elements."""

    def each(self, difference: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return difference.square().flatten(1).mean(1)


class Adaptive(Residual):
    """||Delta||^2 / sg(||Delta||^2 + c)^p, ||.||^2 summed over a sample (MeanFlow, Eq. 22).

    With p = 1 the loss stays near 1 regardless of progress: watch the raw squared error instead.

    Args:
        p: exponent of the weight; 0 is the plain squared error, 1 divides the whole error out.
        c: keeps the weight finite; at least 0.
    """

    def __init__(self, p: float = 1.0, c: float = 0.01) -> None:
        NON_NEGATIVE.check(self, p=p, c=c)
        super().__init__()
        self.p, self.c = p, c

    def each(self, difference: Tensor, t: Tensor, r: Tensor) -> Tensor:
        squared = difference.square().flatten(1).sum(1)
        return squared / (squared.detach() + self.c) ** self.p


class Learned(Residual):
    """e^w(t) ||Delta||^2 / D - w(t) with a small network w, which learns the best weight at every t (EDM2; sCM, 4.2).

    Args:
        width: number of Fourier features of t, and of hidden units.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int = 64) -> None:
        COUNT.check(self, width=width)
        super().__init__()
        index = torch.arange(width, dtype=torch.float32, device="cpu")
        # the same features in every run: geometric frequencies, and phases of the golden ratio
        self.register_buffer("frequencies", 2.0 ** (4 * index / width), persistent=False)
        self.register_buffer("phases", 2 * math.pi * (index * (math.sqrt(5) - 1) / 2).frac(), persistent=False)
        self.layer = nn.Linear(width, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def weight(self, t: Tensor) -> Tensor:
        """w(t), (B,) -> (B,); 0 before any training."""
        features = torch.cos(torch.outer(t, self.frequencies) + self.phases)
        return cast(Tensor, self.layer(features)).squeeze(1)

    def each(self, difference: Tensor, t: Tensor, r: Tensor) -> Tensor:
        with torch.autocast(difference.device.type, enabled=False):
            w = self.weight(t)
        squared = difference.square().flatten(1).mean(1)
        return w.exp() * squared - w
