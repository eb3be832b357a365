"""Images: conversion from bytes to [-1, 1] and back, sheets, and PNG files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from cm_lightning.domains import COUNT
from cm_lightning.files import replacing


def to_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 in 0 ... 255 to float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to uint8, rounded; values outside are clipped."""
    return (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def sheet(images: Tensor, columns: int = 10, scale: int = 1) -> Tensor:
    """Lay out (N, C, H, W) in [-1, 1] as one uint8 image (3, H', W'); grey images become RGB.

    Args:
        images: the images, laid out row by row.
        columns: number of images in a row.
        scale: factor by which every pixel is enlarged.
    """
    COUNT.check(columns=columns, scale=scale)
    grid: Tensor = make_grid(to_pixels(images.cpu()), nrow=columns, padding=2, pad_value=128)
    return grid.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def write_png(path: str | Path, pixels: Tensor) -> None:
    """Write a uint8 image (3, H, W) or (1, H, W)."""
    with replacing(path) as temporary:
        save_image(pixels.to(torch.float32) / 255, temporary)
