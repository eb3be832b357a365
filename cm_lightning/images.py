"""Images: from bytes to [-1, 1] and back, sheets to look at, and PNG files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from cm_lightning.domains import COUNT
from cm_lightning.files import replacing


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 in 0 ... 255 -> float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, rounded; values outside are cut."""
    return (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def sheet(images: Tensor, columns: int = 10, scale: int = 1) -> Tensor:
    """(N, C, H, W) in [-1, 1] -> one uint8 image (3, H', W'); grey images become RGB.

    Args:
        images: to lay out row by row.
        columns: images in a row.
        scale: by what to enlarge every pixel.
    """
    COUNT.check(columns=columns, scale=scale)
    grid: Tensor = make_grid(to_pixels(images.cpu()), nrow=columns, padding=2, pad_value=128)
    return grid.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def write_png(path: str | Path, pixels: Tensor) -> None:
    """Write a uint8 image (3, H, W) or (1, H, W)."""
    with replacing(path) as temporary:
        save_image(pixels.to(torch.float32) / 255, temporary)
