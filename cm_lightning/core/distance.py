"""Distances d(x, y) between two batches of images, (B, ...), (B, ...) -> (B,)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cm_lightning.domains import NON_NEGATIVE, POSITIVE
from cm_lightning.recording import Recorded


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of each sample."""
    return (x - y).abs().flatten(1).mean(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of each sample, which CM and its reference code call l2."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor, c: float | None = None) -> Tensor:
    """sqrt(||x - y||^2 + c^2) - c with the norm over the whole sample (iCT, Eq. 7).

    c defaults to iCT's 0.00054 sqrt(D), where D is the dimension of a sample. c = 0 is the norm itself, as in ECT. The
    gradient is finite everywhere, and the value is computed without cancellation, so it stays accurate for small x - y.
    """
    difference = (x - y).flatten(1)
    c = 0.00054 * math.sqrt(difference.shape[1]) if c is None else c
    if c == 0:
        norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norm
    return _huber(difference.square().sum(1), c)


def elementwise_huber(x: Tensor, y: Tensor, c: float = 0.001) -> Tensor:
    """The mean over the elements of a sample of sqrt((x - y)^2 + c^2) - c, as in LCM's code."""
    return _huber((x - y).square(), c).flatten(1).mean(1)


def _huber(squared: Tensor, c: float) -> Tensor:
    return squared / ((squared + c**2).sqrt() + c)


class Distance(Recorded, ABC):
    """A distance as an object, to be chosen and configured by class path."""

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, ...), (B, ...) -> (B,)."""


class L1(Distance):
    """:func:`l1`."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return l1(x, y)


class L2(Distance):
    """:func:`l2`."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return l2(x, y)


class PseudoHuber(Distance):
    """:func:`pseudo_huber` with a fixed c (None: iCT's value for the dimension at hand)."""

    def __init__(self, c: float | None = None) -> None:
        if c is not None:
            NON_NEGATIVE.check(self, c=c)
        self.c = c

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return pseudo_huber(x, y, self.c)


class ElementwiseHuber(Distance):
    """:func:`elementwise_huber`."""

    def __init__(self, c: float = 0.001) -> None:
        POSITIVE.check(self, c=c)
        self.c = c

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return elementwise_huber(x, y, self.c)
