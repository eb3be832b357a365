"""Improved precision and recall of features (Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as nnf
from torch import Tensor

from cm_lightning.domains import COUNT
from cm_lightning.metrics.comparison import AgainstReal, Comparison

_ROWS = 250  # the number of features whose distances are computed at a time
_SAME = 1e-12  # squared distances up to this share of the largest squared norms are the rounding of 0


class PrecisionRecall(Comparison):
    """The share of samples within the real images, ``precision``, and of real images within the samples, ``recall``.

    A feature lies within a set if it is at most as far from some feature of the set as that is from its k-th nearest
    neighbour in the set. A set of k features or fewer does not have such neighbours, and the share within it is NaN.

    Args:
        neighbours: k.

    Raises:
        ConfigError: k is not a whole number of at least 1.
    """

    def __init__(self, neighbours: int = 3) -> None:
        COUNT.check(self, neighbours=neighbours)
        self.neighbours = neighbours

    def against(self, real: Tensor) -> AgainstReal:
        real = real.double()
        real_radii = self._squared_radii(real)

        def shares(drawn: Tensor) -> dict[str, float]:
            drawn = drawn.double()
            drawn_radii = self._squared_radii(drawn)
            within_real, within_drawn = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
            for rows, squared in _squared_distances(drawn, real):
                within_real.append((squared <= real_radii).any(1))
                within_drawn |= (squared <= drawn_radii[rows, None]).any(0)
            return {
                "precision": self._share(torch.cat(within_real), len(real)),
                "recall": self._share(within_drawn, len(drawn)),
            }

        return shares

    def _squared_radii(self, x: Tensor) -> Tensor:
        """Squared distances (N,) from features (N, D) to the k-th nearest of the others."""
        if len(x) <= self.neighbours:
            return x.new_zeros(len(x))
        nearest = []
        for rows, squared in _squared_distances(x, x):
            own = torch.arange(len(x), device=x.device)[rows, None]
            nearest.append(squared.scatter_(1, own, torch.inf).topk(self.neighbours, largest=False).values[:, -1])
        return torch.cat(nearest)

    def _share(self, within: Tensor, others: int) -> float:
        """The mean of booleans (N,) for a set of this many features."""
        return float(within.double().mean()) if others > self.neighbours else torch.nan


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of x (N, D), some at a time, and the squared distances from them to y (M, D)."""
    x_norms, y_norms = x.square().sum(1, keepdim=True), y.square().sum(1)
    rounding = _SAME * float(x_norms.max() + y_norms.max())
    for first in range(0, len(x), _ROWS):
        rows = slice(first, first + _ROWS)
        squared = torch.addmm(x_norms[rows] + y_norms, x[rows], y.T, alpha=-2)
        yield rows, nnf.threshold(squared, rounding, 0.0, inplace=True)
