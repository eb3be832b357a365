"""What a picture is to be: the values of the page's controls, checked."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cm_lightning.data.decode import read_image
from cm_lightning.domains import FINITE, NATURAL, POSITIVE, SHARE, Domain
from cm_lightning.errors import ConfigError, near
from cm_lightning.images import to_unit_range

#: The most pixels of a drawing; a model's images have far fewer.
MOST_PIXELS = 2**22
#: What a stranger may have decoded. Others start programs: Pillow leaves EPS to Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_SEED = Domain("a number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
_STEPS = Domain("a whole number from 1 to 256", lambda value: 1 <= value <= 256, whole=True)


@dataclass(frozen=True)
class Wish:
    """The values that a picture depends on.

    Args:
        label: the class; that of the first sample of ``cm-lightning sample`` if None.
        prompt: the prompt, for a text-to-image model.
        seed: seed of the noise; between two whole seeds the noise lies on the arc between theirs.
        steps: evaluations of the network, as of ``sample``; of a diffusion model that redraws, its own number.
        guidance: as of ``sample``; none if None.
        image: an image file in base64, which is redrawn; a sample is drawn if None.
        sigma: the noise level at which redrawing starts.
        strength: its counterpart for a text-to-image model, the share of the steps that are taken.
        teacher: whether the teacher draws, with evaluations of its own.
    """

    label: int | None = None
    prompt: str | None = None
    seed: float = 0.0
    steps: int | None = None
    guidance: float | None = None
    image: str | None = None
    sigma: float = 5.38
    strength: float = 0.5
    teacher: bool = False

    def __post_init__(self) -> None:
        _SEED.check(seed=self.seed)
        POSITIVE.check(sigma=self.sigma)
        SHARE.check(strength=self.strength)
        if self.guidance is not None:
            FINITE.check(guidance=self.guidance)
        if self.label is not None:
            NATURAL.check(label=self.label)
        if self.steps is not None:
            _STEPS.check(steps=self.steps)
        if not isinstance(self.prompt, str | None):
            raise ConfigError(f"prompt must be text, got {self.prompt!r}")
        if not isinstance(self.teacher, bool):
            raise ConfigError(f"teacher must be true or false, got {self.teacher!r}")

    @classmethod
    def parse(cls, values: object) -> Wish:
        """Make it from an object of JSON.

        Raises:
            ConfigError: there are other names, or a value is out of range.
        """
        if not isinstance(values, dict):
            raise ConfigError("give an object: {} has all the defaults")
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown value {name!r}{near(name, known)}; give some of {', '.join(known)}")
        return cls(**values)

    def drawing(self, shape: Sequence[int]) -> Tensor | None:
        """The image, resized and cropped for a model of images (C, H, W): (C, H, W) in [-1, 1], or None.

        Raises:
            ConfigError: it is not base64, or has too many pixels.
            DataError: it cannot be read as an image.
        """
        if self.image is None:
            return None
        return fitted(_decoded(self.image), shape)


def fitted(image: Image.Image, shape: Sequence[int]) -> Tensor:
    """An image resized and cropped for a model of images (C, H, W): (C, H, W) in [-1, 1]."""
    channels, height, width = shape
    picture = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(picture))
    return to_unit_range(pixels.reshape(height, width, channels).permute(2, 0, 1))


def _decoded(text: object) -> Image.Image:
    if not isinstance(text, str):
        raise ConfigError("image must be an image file in base64")
    try:
        content = base64.b64decode(text.rpartition(",")[2], validate=True)  # a browser puts "data:image/png;base64,"
    except (binascii.Error, ValueError) as error:
        raise ConfigError("image must be an image file in base64") from error
    width, height = _size(content)
    if width * height > MOST_PIXELS:
        raise ConfigError(f"image has {width} x {height} pixels: give at most {MOST_PIXELS:,} in all")
    return read_image(io.BytesIO(content), "image")


def _size(content: bytes) -> tuple[int, int]:
    """Width and height, from the head of an image file."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return image.size
    except Exception as error:  # damaged files raise many kinds
        raise ConfigError(f"image cannot be read: give a file of {', '.join(_FORMATS)}") from error
