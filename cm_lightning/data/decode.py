"""Image files of any size and kind, decoded to one shape."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from cm_lightning.data.images import to_unit_range
from cm_lightning.errors import ConfigError, DataError


class Decoder:
    """An image file -> float32 (C, H, W) in [-1, 1]: upright by its EXIF data, resized to cover, cropped to the centre.

    Args:
        size: (height, width), or the side of a square, in pixels.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(self, size: int | tuple[int, int], channels: Literal[1, 3] = 3) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ConfigError(f"data.size must be at least 1 pixel, got {size}")
        self.image_shape = (channels, height, width)

    def __call__(self, file: Path | BinaryIO, name: str) -> Tensor:
        """Decode a file. Raises DataError, calling the image ``name``, if it is none."""
        channels, *size = self.image_shape
        try:
            with Image.open(file) as image:
                ImageOps.exif_transpose(image, in_place=True)
                pixels = F.pil_to_tensor(image.convert("RGB" if channels == 3 else "L"))
        except Exception as error:  # damaged files raise many kinds
            raise DataError(f"{name} cannot be read as an image: repair or remove it") from error
        return to_unit_range(F.center_crop(F.resize(pixels, self._cover(*pixels.shape[1:])), size))

    def _cover(self, height: int, width: int) -> list[int]:
        """The least size of the same proportions, rounded down, that covers the wanted one."""
        _, wanted_height, wanted_width = self.image_shape
        if wanted_height * width >= wanted_width * height:
            return [wanted_height, wanted_height * width // height]
        return [wanted_width * height // width, wanted_width]
