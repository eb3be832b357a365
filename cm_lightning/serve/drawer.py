"""What a model behind the page has to do: draw one picture at a time, tell its cost, and describe its controls."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cm_lightning.core.stream_batch import Stages
from cm_lightning.images import png_bytes
from cm_lightning.serve.wish import Wish


@dataclass(frozen=True)
class Picture:
    """An image, and its cost.

    Args:
        png: the image as a PNG file.
        evaluations: evaluations of the network.
        milliseconds: the time that drawing took.
    """

    png: bytes
    evaluations: int
    milliseconds: float


class Drawer(ABC):
    """A model that draws one picture at a time, however many threads ask.

    Args:
        network: its network, whose evaluations are counted.
        name: how the page calls it.
        shape: (C, H, W) of its images.
    """

    def __init__(self, network: nn.Module, name: str, shape: Sequence[int]) -> None:
        self.name, self.shape = name, tuple(shape)
        self._lock, self._rows = threading.Lock(), 0
        network.register_forward_hook(self._count)

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it draws, in words: models of one kind can stand beside each other."""

    @abstractmethod
    def pixels(self, wish: Wish, steps: int | None, drawing: Tensor | None) -> Tensor:
        """Draw an image.

        Args:
            wish: the values of the controls, without the steps.
            steps: the number of steps; the model's own if None.
            drawing: (C, H, W) in [-1, 1], to be redrawn; None for an image from noise alone.

        Returns:
            (C, H, W) uint8, on the CPU.

        Raises:
            ConfigError: the wish does not fit the model.
        """

    @abstractmethod
    def stages(self, wish: Wish, steps: int | None) -> Stages:
        """The steps by which :meth:`pixels` redraws an image, for frames that share the passes of the network.

        Args:
            wish: the values of the controls, without the steps.
            steps: the number of steps; the model's own if None.

        Raises:
            ConfigError: the wish does not fit the model, or its steps cannot be batched.
        """

    @abstractmethod
    def controls(self) -> dict[str, Any]:
        """What the page must know to show its controls, as JSON."""

    def draw(self, wish: Wish, steps: int | None) -> Picture:
        """Draw a picture, in a number of steps or in the model's own."""
        drawing = wish.drawing(self.shape)
        with self._lock, torch.no_grad():
            self._rows, start = 0, time.perf_counter()
            png = png_bytes(self.pixels(wish, steps, drawing))
            return Picture(png, self._rows, 1e3 * (time.perf_counter() - start))

    def as_teacher(self, wish: Wish) -> Wish:
        """The wish as a teacher takes it."""
        return wish

    def _count(self, network: object, inputs: object, output: Any) -> None:
        self._rows += len(output if isinstance(output, Tensor) else output[0])
