"""Pixels: from files' bytes to images in [-1, 1] and back."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 in 0 ... 255 -> float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, rounded; values outside are cut."""
    return (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
