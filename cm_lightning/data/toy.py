"""Distributions in the plane, which show a method at work within seconds."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cm_lightning.data.base import GenerativeDataModule, InMemory
from cm_lightning.domains import at_least

Shape = Literal["moons", "rings", "spiral", "gaussians", "checkerboard"]


def draw(shape: Shape, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw n points (n, 2) in about [-1, 1]^2, with standard deviation near 0.5, and the part of the shape of each."""
    u, v = torch.rand(2, n, generator=generator)
    noise = torch.randn(n, 2, generator=generator)
    if shape == "gaussians":
        part = (u * 8).long()
        angle = part * (2 * math.pi / 8)
        return 0.7 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * noise, part
    if shape == "rings":
        part = (u * 2).long()
        angle, radius = 2 * math.pi * v, 0.4 * (part + 1)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + 0.02 * noise, part
    if shape == "moons":
        part = (u * 2).long()
        angle, side = math.pi * v, 1 - 2 * part
        return torch.stack([angle.cos() - 0.5 * side, side * (angle.sin() - 0.25)], 1) * 0.6 + 0.03 * noise, part
    if shape == "spiral":
        part = (u * 2).long()
        turn = 2 * math.pi * v.sqrt()
        radius, angle = 0.9 * v.sqrt(), turn + math.pi * part
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + 0.02 * noise, part
    column, row = (u * 4).long(), (v * 2).long()  # checkerboard
    x, y = u * 4, (column % 2) + 2 * row + torch.rand(n, generator=generator)
    return torch.stack([x, y], 1) / 2 - 1, torch.zeros(n).long()


class Toy(GenerativeDataModule):
    """Points of a shape in the plane; batches are (points (B, 2), part of the shape (B,)).

    Args:
        shape: ``moons``, ``rings``, ``spiral`` (two arms), ``gaussians`` (eight on a circle) or ``checkerboard``.
        num_points: number of points for training, at least 10; a tenth as many are used for validation.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    image_shape = (2,)

    def __init__(
        self,
        shape: Shape = "moons",
        num_points: int = 20_000,
        batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        at_least(10).check(self, num_points=num_points)
        self.shape, self.num_points = shape, num_points

    def load(self, split: str) -> InMemory:
        n, seed = (self.num_points, 2 * self.seed) if split == "train" else (self.num_points // 10, 2 * self.seed + 1)
        return InMemory(*draw(self.shape, n, torch.Generator().manual_seed(seed)))
