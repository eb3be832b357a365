"""Reading image files that a command takes as images for a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cm_lightning.data.decode import Decoder, read_image
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.images import to_unit_range


def read_picture(path: Path, option: str, shape: Sequence[int], resize: bool = False) -> Tensor:
    """Read an image for a model.

    Args:
        path: the image file, of any format that Pillow reads.
        option: its option, such as "--image", for messages.
        shape: (C, H, W) of the model, where C is 1 or 3; the file is converted to C channels.
        resize: whether the image is resized and cropped to H x W.

    Returns:
        (C, H, W) in [-1, 1], or (C, h, w) of the file's own size.

    Raises:
        DataError: the file is missing or damaged.
    """
    channels, height, width = shape
    if not path.is_file():
        raise DataError(f"{option} {path}: file not found")
    if resize:
        return Decoder((height, width), 1 if channels == 1 else 3)(path, f"{option} {path}")
    pixels = np.array(read_image(path, f"{option} {path}").convert("L" if channels == 1 else "RGB"))
    return to_unit_range(torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1))


def require_size(image: Tensor, path: Path, option: str, shape: Sequence[int]) -> None:
    """Raise ConfigError unless an image (C, h, w) has the size of the model's images (C, H, W)."""
    if image.shape[1:] != torch.Size(shape[1:]):
        (h, w), (height, width) = image.shape[1:], shape[1:]
        raise ConfigError(
            f"{option} {path} has {w} x {h} pixels, but the model draws {width} x {height}: scale it, or add --resize"
        )


def read_mask(path: Path, shape: Sequence[int], resize: bool = False) -> Tensor:
    """Read --mask for images (C, H, W).

    Returns:
        (1, H, W) bool, true where the mask is white or transparent: that part is redrawn.

    Raises:
        DataError: the file is missing or damaged.
        ConfigError: it has another size, or covers everything or nothing.
    """
    shape = (1, *shape[1:])
    brightness = read_picture(path, "--mask", shape, resize)
    require_size(brightness, path, "--mask", shape)
    mask = brightness > 0
    if mask.all() or not mask.any():
        colour = "white" if mask.all() else "black"
        raise ConfigError(f"--mask {path} is {colour} everywhere: make white what is to be redrawn, and the rest black")
    return mask


def place_on(image: Tensor, path: Path, size: Sequence[int], at: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Place the --image of outpainting on a larger canvas.

    Args:
        image: (C, h, w) in [-1, 1].
        path: its file, for messages.
        size: height and width of the canvas.
        at: top and left of the image; if None, it is centred.

    Returns:
        The canvas (C, H, W), 0 around the image, and a mask (H, W), true there.

    Raises:
        ConfigError: the image is not smaller, or does not fit at that place.
    """
    (channels, h, w), (height, width) = image.shape, size
    if h > height or w > width or (h, w) == (height, width):
        raise ConfigError(
            f"--image {path} has {w} x {h} pixels, the model {width} x {height}: outpaint takes a smaller image"
        )
    top, left = at or ((height - h) // 2, (width - w) // 2)
    if top + h > height or left + w > width:
        raise ConfigError(
            f"--at {top},{left}: the image ends beyond {width} x {height}: give at most {height - h},{width - w}"
        )
    canvas, mask = torch.zeros(channels, height, width), torch.ones(height, width, dtype=torch.bool)
    canvas[:, top : top + h, left : left + w] = image
    mask[top : top + h, left : left + w] = False
    return canvas, mask
