"""Image files of any size and kind, decoded to one shape."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from cm_lightning.errors import ConfigError, DataError
from cm_lightning.images import to_unit_range

#: Suffixes of still images; those that the installed Pillow cannot open are left out of :data:`ENDINGS`.
_PICTURES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".jpx", ".qoi", ".pcx", ".sgi", ".ico", ".mpo"),
}
#: Suffixes of the files that are read as images.
ENDINGS = frozenset(_PICTURES & set(Image.registered_extensions()))


class Decoder:
    """Decodes an image file to float32 (C, H, W) in [-1, 1]: rotated by its EXIF data, resized, and centre-cropped.

    Args:
        size: (height, width), or the side of a square, in pixels.
        channels: 3 for RGB, 1 for grey.
        background: colour behind transparent images: a name, or #rrggbb.
    """

    def __init__(self, size: int | tuple[int, int], channels: Literal[1, 3] = 3, background: str = "white") -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ConfigError(f"data.size must be at least 1 pixel, got {size}")
        if channels not in (1, 3):
            raise ConfigError(f"data.channels must be 1 (grey) or 3 (RGB), got {channels!r}")
        self.image_shape = (channels, height, width)
        self.background = background
        _colour(background)  # refuses an unknown colour early

    def __call__(self, file: Path | BinaryIO, name: str) -> Tensor:
        """Decode a file. Raises DataError, which calls the image ``name``, if it is not an image."""
        from torchvision.transforms.v2 import functional as F  # slow to import, and read_image does not need it

        channels, *size = self.image_shape
        grey = channels == 1
        image = read_image(file, name, self.background).convert("L" if grey else "RGB")
        pixels = F.pil_to_tensor(image)
        return to_unit_range(F.center_crop(F.resize(pixels, self._cover(*pixels.shape[1:])), size))

    def _cover(self, height: int, width: int) -> list[int]:
        """The smallest size of the same proportions, rounded down, that covers the required one."""
        _, wanted_height, wanted_width = self.image_shape
        if wanted_height * width >= wanted_width * height:
            return [wanted_height, wanted_height * width // height]
        return [wanted_width * height // width, wanted_width]


def read_image(file: Path | BinaryIO, name: str, background: str = "white") -> Image.Image:
    """Read the first frame of an image file as 8 bits, grey (mode L) or RGB, upright, and without transparency.

    16-bit images lose their lower byte. Floating-point images hold 0 ... 1, or 0 ... 255.

    Args:
        file: the file to read.
        name: name of the image in messages.
        background: colour behind transparent images.

    Raises:
        DataError: the file is damaged, not an image or too large, or its values are out of range.
    """
    try:
        with Image.open(file) as image:
            image.load()  # a damaged image fails here
            with suppress(Exception):  # damaged EXIF data does not make the image damaged
                ImageOps.exif_transpose(image, in_place=True)
            return _opaque(_eight_bits(image, name), background)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(f"{name} is too large, with more than {most:,} pixels: store a smaller copy of it") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damaged files raise many kinds of errors
        raise DataError(f"{name} cannot be read as an image: repair or remove it") from error


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bits(image)
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    for top in (1, 255) if image.mode == "F" else (255, 65535):
        if low >= 0 and high <= top:
            return Image.fromarray(np.floor(values * (255 / top) + 0.5).astype(np.uint8))
    raise DataError(f"{name} has values from {low:g} to {high:g}: store it with 8 or 16 bits, or floats in 0 ... 1")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """The higher byte, even for a TIFF with fewer bits (tag 258) or with 0 as white (tag 262 is 0)."""
    values = np.asarray(image).astype(np.uint16)
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(258, (16,))[0])
    if tags.get(262) == 0:
        values = 2**bits - 1 - values
    pixels = Image.fromarray((values >> max(0, bits - 8)).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        return Image.merge("LA", (pixels, alpha))
    return pixels


def _opaque(image: Image.Image, background: str) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (*_colour(background), 255)), layer)
        grey = grey and len(set(_colour(background))) == 1
    return image.convert("L" if grey else "RGB")


def _colour(name: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ConfigError(f"data.background {name!r} is not a colour: give a name such as white, or #rrggbb") from error
