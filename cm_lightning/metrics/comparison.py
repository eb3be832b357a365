"""Comparisons of stored features of samples with those of real images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

#: Maps the features (N, D) of samples to scores by kind, such as ``kid``.
AgainstReal: TypeAlias = Callable[[Tensor], dict[str, float]]


class Comparison(ABC):
    """A comparison of two sets of features."""

    @abstractmethod
    def against(self, real: Tensor) -> AgainstReal:
        """Compute once what depends only on the features (M, D) of real images; the result takes those of samples."""
