"""Measures, which compute scores of samples from their images and those of a reference."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric


class Measure(ABC):
    """Computes scores of samples, by name.

    Each rank adds its own share of the images, and every rank gets the scores of all of them.
    """

    #: Distinguishes the measure from others of the same samples; the name of the reference's file begins with it.
    name: str
    #: (C, H, W) of the images that it takes; None for any.
    image_shape: tuple[int, ...] | None = None
    #: The kind of images that it is made for, ``digits`` or ``clothes``; None for any.
    subject: str | None = None

    @property
    def label(self) -> str:
        """The name of the measure in messages."""
        return type(self).__name__

    def missing(self) -> str | None:
        """How to get weights that were neither given nor found; otherwise None."""
        return None

    @abstractmethod
    def start(self, across_ranks: bool = True) -> None:
        """Load what is needed and forget all images.

        Args:
            across_ranks: whether the scores cover the images of all ranks together, or of each rank separately.
        """

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move to a device."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the samples but keep the reference."""

    @abstractmethod
    def add(self, images: Tensor, labels: Tensor | None) -> None:
        """Add samples (B, C, H, W) in [-1, 1], and the labels (B,) or (B, K) that they were drawn for, if known."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The scores of the samples; all ranks must call it."""

    def identity(self) -> str:
        """Distinguishes the contents of the reference from those of others; empty without a reference."""
        return ""

    def add_reference(self, images: Tensor) -> None:  # noqa: B027 - for measures that compare
        """Add real images (B, C, H, W) in [-1, 1] to the reference."""

    def reference(self) -> dict[str, Tensor]:
        """What is kept about the real images of all ranks; all must call it."""
        return {}

    def load_reference(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Load what :meth:`reference` gave, on one rank only, because the ranks are summed."""


def shared_mean(across_ranks: bool) -> MeanMetric:
    """A mean over one rank or all, NaN if nothing is added. Every rank must call it, even without values."""
    mean = MeanMetric()
    if not across_ranks:
        mean.distributed_available_fn = lambda: False
    return mean
