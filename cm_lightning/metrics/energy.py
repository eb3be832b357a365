"""The energy distance of points, which does not need features (Szekely & Rizzo 2013)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from cm_lightning.domains import COUNT, at_least
from cm_lightning.metrics.kept import KeptFeatures
from cm_lightning.metrics.measure import Measure

#: The number of points whose distances to all others are held in memory at a time.
_ROWS = 50


class EnergyDistance(Measure):
    """The energy distance of points from real ones, ``energy``: 2 E|x - y| - E|x - x'| - E|y - y'|.

    It is 0 only for equal distributions. The means are over all pairs, including those of a point with itself. So it is
    never negative, and about 2 E|y - y'| / N for two different sets of N points from one distribution.

    Args:
        dim: number of entries of a point; samples have the shape (dim,).
        limit: the largest number of points of each kind that are compared, at least 2; the time grows with its square.
    """

    name = "energy"

    def __init__(self, dim: int = 2, limit: int = 10_000) -> None:
        COUNT.check(self, dim=dim)
        at_least(2).check(self, limit=limit)
        self.dim, self.image_shape, self.limit = dim, (dim,), limit

    def start(self, across_ranks: bool = True) -> None:
        together = across_ranks and dist.is_available() and dist.is_initialized()
        self._place = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self._device = torch.device("cpu")
        self._real = KeptFeatures(*self._place, self.limit)
        self._real_spread: float | None = None
        self.reset()

    def to(self, device: torch.device) -> None:
        self._device = torch.device("cpu") if device.type == "mps" else device

    def reset(self) -> None:
        self._drawn = KeptFeatures(*self._place, self.limit)

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        self._drawn.add(images.flatten(1))

    def compute(self) -> dict[str, float]:
        drawn, real = self._together(self._drawn).features, self._together(self._real).features
        if self._real_spread is None:
            self._real_spread = mean_distance(real)
        return {"energy": 2 * mean_distance(drawn, real) - mean_distance(drawn) - self._real_spread}

    def identity(self) -> str:
        return f"{self.limit} points"

    def add_reference(self, images: Tensor) -> None:
        self._real.add(images.flatten(1))
        self._real_spread = None

    def reference(self) -> dict[str, Tensor]:
        real = self._together(self._real)
        return {"kept_keys": real.keys.contiguous(), "kept_points": real.features.contiguous()}

    def load_reference(self, state: dict[str, Tensor]) -> None:
        self._real.keys, self._real.features = state["kept_keys"], state["kept_points"]
        self._real_spread = None

    def _together(self, kept: KeptFeatures) -> KeptFeatures:
        return kept.of_all_ranks(self.dim, self._device)


def mean_distance(x: Tensor, y: Tensor | None = None) -> float:
    """The mean of |a - b| over all pairs of points (N, D) and (M, D), or of x with itself; NaN if there are none."""
    other, total = x if y is None else y, x.new_zeros((), dtype=torch.float64)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        if y is not None:
            total += _distances(rows, y)
        else:  # each pair is counted once
            total += 2 * _distances(rows, x[start:]) - _distances(rows, rows)
    return float(total / (len(x) * len(other) or float("nan")))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y).sum(dtype=torch.float64)
