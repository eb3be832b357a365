"""The models behind the page: a picture for each wish, with what it cost."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cm_lightning.core.editing import noise_at, redraw
from cm_lightning.core.noise import unit_noise
from cm_lightning.editing import REDRAW_SIGMAS
from cm_lightning.errors import ConfigError
from cm_lightning.images import png_bytes, to_pixels
from cm_lightning.modules.base import GenerativeModule, evaluated
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.endpoint import endpoint
from cm_lightning.serve.wish import Wish

#: Ratio of successive levels of drawing anew: that of CM's two for strokes.
_RATIO = REDRAW_SIGMAS[1] / REDRAW_SIGMAS[0]
#: Numbers of steps that the page offers, and those for a diffusion model, as far as the model takes them.
_STEPS, _STEPS_OF_DIFFUSION = (1, 2, 4, 8), (5, 9, 17)
#: The noise levels between which the page lets its user choose, as far as the model has them.
_SIGMAS = (0.2, 40.0)


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


class Model:
    """A module that draws one picture at a time, however many threads ask.

    Args:
        module: a consistency model, a flow map or a diffusion model of grey or colour images.
        name: how the page calls it.

    Raises:
        ConfigError: the module is of another kind.
    """

    def __init__(self, module: GenerativeModule, name: str) -> None:
        if len(module.image_shape) != 3 or module.image_shape[0] not in (1, 3):
            raise ConfigError(f"{name} does not draw grey or colour images: give another checkpoint")
        self.module, self.name, self.end = module, name, endpoint(module)
        self._lock, self._rows = threading.Lock(), 0
        module.backbone.register_forward_hook(self._count)

    def draw(self, wish: Wish, steps: int | None) -> Picture:
        """Draw a picture, in a number of steps or in the module's own."""
        drawing = wish.drawing(self.module.image_shape)
        self.module.check_guidance(wish.guidance)
        with self._lock:
            self._rows, start = 0, time.perf_counter()
            pixels = to_pixels(self._drawn(wish, steps, drawing))[0].cpu()
            return Picture(png_bytes(pixels), self._rows, 1e3 * (time.perf_counter() - start))

    def _drawn(self, wish: Wish, steps: int | None, drawing: Tensor | None) -> Tensor:
        """An image in [-1, 1], (1, C, H, W)."""
        module, noise = self.module, [noise_at(wish.seed)]
        if drawing is None:
            return module.sample(1, steps, wish.label, noise, guidance=wish.guidance)
        like = next(module.backbone.parameters())
        f = self.end.function(module.sample_labels(1, wish.label), wish.guidance)
        noised = self.end.noised(lambda x: unit_noise(x.shape, noise, x.device, x.dtype))
        with torch.no_grad(), evaluated(module.backbone):
            return redraw(f, drawing[None].to(like), self._levels(wish.sigma, steps), noised).clamp(-1, 1)

    def _levels(self, sigma: float, steps: int | None) -> list[float]:
        """The levels of drawing anew; a diffusion model solves its ODE from the first."""
        n = 1 if isinstance(self.module, DiffusionModule) else steps or self.module.default_steps
        lower = [sigma * _RATIO**i for i in range(1, n)]
        levels = [sigma, *(level for level in lower if level > self.end.sigmas[0])]
        return self.module.sampling_levels(None, [self.end.level(level) for level in levels])

    def _count(self, network: object, inputs: object, output: Tensor) -> None:
        self._rows += len(output)


class Painter:
    """The model of the page, and beside it, if there is one, its teacher.

    Args:
        model: draws in the steps that the user chooses.
        teacher: draws in its own number. A diffusion model without a teacher is its own.

    Raises:
        ConfigError: they draw different images, or of different classes.
    """

    def __init__(self, model: Model, teacher: Model | None = None) -> None:
        if teacher is None and isinstance(model.module, DiffusionModule):
            teacher = model
        self.model, self.teacher = model, teacher
        if teacher and _images(teacher) != _images(model):
            raise ConfigError(
                f"{teacher.name} draws {_images(teacher)}, but {model.name} {_images(model)}: give models of one kind"
            )

    def draw(self, wish: Wish) -> Picture:
        """Draw a picture.

        Raises:
            ConfigError: the wish does not fit the model.
        """
        if not wish.teacher:
            return self.model.draw(wish, wish.steps)
        if self.teacher is None:
            raise ConfigError("there is no teacher: start the server with --teacher")
        guidance = wish.guidance if self.teacher.module.label_dropout else 0.0
        return self.teacher.draw(replace(wish, guidance=guidance), None)

    def describe(self) -> dict[str, Any]:
        """What the page must know to show its controls, as JSON."""
        module, end = self.model.module, self.model.end
        return {
            "name": self.model.name,
            "shape": module.image_shape,
            "classes": module.num_classes,
            "guided": bool(module.label_dropout),
            "steps": (steps := _choices(module)),
            "default_steps": steps[0] if self.teacher is self.model else module.default_steps,
            "sigmas": [max(_SIGMAS[0], end.sigmas[0]), min(_SIGMAS[1], end.sigmas[1])],
            "sigma": Wish.sigma,
            "teacher": self.teacher and self.teacher.name,
        }


def _images(model: Model) -> str:
    """What a model draws, for the comparison with another and for its message."""
    channels, height, width = model.module.image_shape
    classes = f", {model.module.num_classes} classes" if model.module.num_classes else ""
    return f"{width} x {height} pixels, {channels} channel{'s' if channels > 1 else ''}{classes}"


def _choices(module: GenerativeModule) -> list[int]:
    """Numbers of steps that the module takes, ascending; its own is among them."""
    offered = _STEPS_OF_DIFFUSION if isinstance(module, DiffusionModule) else _STEPS
    return sorted({module.default_steps, *(steps for steps in offered if _takes(module, steps))})


def _takes(module: GenerativeModule, steps: int) -> bool:
    try:
        module.sampling_levels(steps, None)
    except ConfigError:
        return False
    return True
