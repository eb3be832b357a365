"""Couplings, which pair the noise of a batch with its data."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from cm_lightning.recording import Recorded


class Coupling(Recorded, ABC):
    """A coupling as an object, to be chosen and configured by class path."""

    @abstractmethod
    def __call__(self, x: Tensor, z: Tensor, c: Tensor | None) -> Tensor:
        """Data (B, ...), noise (B, ...), classes (B,) or None -> the noise in the order of the data."""
