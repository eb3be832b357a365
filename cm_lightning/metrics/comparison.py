"""Comparisons of kept features of samples with those of real images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

#: Gives numbers by the kind of each, such as ``kid``, for the features (N, D) of samples.
AgainstReal: TypeAlias = Callable[[Tensor], dict[str, float]]


class Comparison(ABC):
    """A comparison of two sets of features."""

    @abstractmethod
    def against(self, real: Tensor) -> AgainstReal:
        """Compute once what depends on the features (M, D) of real images alone; the result takes those of samples."""
