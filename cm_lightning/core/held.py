"""Weights that gradients do not reach for a while."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class Held:
    """A context in which gradients pass through networks with these weights, but do not reach the weights.

    It may be entered again, as a backward pass does that computes activations a second time.

    Args:
        weights: weights, of which some may be frozen already.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = list(weights)
        self._trained: list[list[nn.Parameter]] = []

    def __enter__(self) -> None:
        trained = [p for p in self.weights if p.requires_grad]
        self._trained.append(trained)
        for p in trained:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self._trained.pop():
            p.requires_grad_(True)
