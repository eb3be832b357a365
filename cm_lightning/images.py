"""Images: conversion from bytes to [-1, 1] and back, sheets, and image files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cm_lightning.domains import COUNT
from cm_lightning.files import replacing

_LINE = 2


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
    grid = _grid(to_pixels(images.cpu()), columns)
    return grid.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def write_png(path: str | Path, pixels: Tensor) -> None:
    """Write a uint8 image (3, H, W) or (1, H, W)."""
    with replacing(path) as temporary:
        picture(_rgb(pixels)).save(temporary)


def png_bytes(pixels: Tensor) -> bytes:
    """The PNG file of a uint8 image (3, H, W) or (1, H, W)."""
    buffer = io.BytesIO()
    picture(_rgb(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_gif(path: str | Path, frames: Sequence[Tensor], milliseconds: int = 120) -> None:
    """Write a repeating animation of uint8 images (3, H, W), each shown for the given time."""
    first, *others = map(picture, frames)
    with replacing(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, duration=milliseconds, loop=0)


def _grid(pixels: Tensor, columns: int) -> Tensor:
    """A grid of images with grey lines of two pixels, as torchvision's, whose import takes longer than drawing."""
    if len(pixels) == 1:
        return _rgb(pixels[0])
    columns = min(columns, len(pixels))
    height, width = pixels.shape[2] + _LINE, pixels.shape[3] + _LINE
    grid = torch.full((3, -(-len(pixels) // columns) * height + _LINE, columns * width + _LINE), 128, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        y, x = i // columns * height + _LINE, i % columns * width + _LINE
        grid[:, y : y + image.shape[1], x : x + image.shape[2]] = image
    return grid


def picture(pixels: Tensor) -> Image.Image:
    """A uint8 image (3, H, W) as an image of Pillow."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _rgb(pixels: Tensor) -> Tensor:
    return pixels.cpu().expand(3, -1, -1)
