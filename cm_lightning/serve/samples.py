"""Models of pixels behind the page."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from cm_lightning.core.editing import noise_at
from cm_lightning.core.noise import unit_noise
from cm_lightning.core.stream_batch import Stages
from cm_lightning.editing import REDRAW_SIGMAS
from cm_lightning.errors import ConfigError
from cm_lightning.images import to_pixels
from cm_lightning.modules.base import GenerativeModule, evaluated
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.endpoint import Endpoint, endpoint
from cm_lightning.serve.drawer import Drawer
from cm_lightning.serve.wish import Wish

#: Ratio of successive levels of redrawing: that of CM's two for strokes.
_RATIO = REDRAW_SIGMAS[1] / REDRAW_SIGMAS[0]
#: Numbers of steps that the page offers, and those for a diffusion model, as far as the model takes them.
_STEPS, _STEPS_OF_DIFFUSION = (1, 2, 4, 8), (5, 9, 17)
#: The noise levels between which the page lets its user choose, as far as the model has them.
_SIGMAS = (0.2, 40.0)
_GUIDANCE = (0.0, 4.0)


class SampleDrawer(Drawer):
    """Draws samples of a class, and redraws drawings.

    Args:
        module: any model of grey or colour images.
        name: how the page calls it.

    Raises:
        ConfigError: the module draws other data.
    """

    def __init__(self, module: GenerativeModule, name: str) -> None:
        if len(module.image_shape) != 3 or module.image_shape[0] not in (1, 3):
            raise ConfigError(f"{name} does not draw grey or colour images: give another checkpoint")
        super().__init__(module.backbone, name, module.image_shape)
        self.module, self.diffuses = module, isinstance(module, DiffusionModule)

    @cached_property
    def end(self) -> Endpoint:
        """The end points of the module's trajectories, from which it redraws."""
        return endpoint(self.module)

    @property
    def kind(self) -> str:
        channels, height, width = self.shape
        classes = f", {self.module.num_classes} classes" if self.module.num_classes else ""
        return f"{width} x {height} pixels, {channels} channel{'s' if channels > 1 else ''}{classes}"

    def pixels(self, wish: Wish, steps: int | None, drawing: Tensor | None) -> Tensor:
        if drawing is not None:
            return self.stages(wish, steps).redraw(drawing)
        guidance = self._guidance(wish)
        return _picture(self.module.sample(1, steps, wish.label, [noise_at(wish.seed)], guidance=guidance))

    def stages(self, wish: Wish, steps: int | None) -> Stages:
        guidance, levels = self._guidance(wish), self._levels(wish.sigma, steps)
        labels = self.module.sample_labels(1, wish.label)
        like, source = next(self.module.backbone.parameters()), [noise_at(wish.seed)]
        noise = {level: unit_noise((1, *self.shape), source, like.device, like.dtype) for level in levels}

        def f(x: Tensor, t: Tensor) -> Tensor:
            classes = None if labels is None else labels.expand(len(x))
            with evaluated(self.module.backbone):
                return self.end.function(classes, guidance)(x, t)

        def noised(x: Tensor, level: float) -> Tensor:
            return self.end.noised(lambda _: noise[level])(x, level)

        return Stages(lambda image: noised(image[None].to(like), levels[0]), f, levels, noised, _picture)

    def _guidance(self, wish: Wish) -> float:
        """The guidance of a wish that fits the module."""
        if wish.prompt is not None:
            raise ConfigError("prompt: this model does not take one: leave it out")
        guidance = wish.guidance or 0.0
        self.module.check_guidance(guidance)
        return guidance

    def _levels(self, sigma: float, steps: int | None) -> list[float]:
        """The levels of redrawing; one, from which it solves its ODE, for a module that does."""
        n = 1 if self.end.solves else steps or self.module.default_steps
        lower = [sigma * _RATIO**i for i in range(1, n)]
        levels = [sigma, *(level for level in lower if level > self.end.sigmas[0])]
        self.module.sampling_levels(None, [self.end.level(sigma)])  # refuses one that is out of range
        return self.end.levels_near(levels)

    def controls(self) -> dict[str, Any]:
        module = self.module
        return {
            "classes": module.num_classes,
            "guidance": [*_GUIDANCE, 0.0] if module.label_dropout else None,
            "steps": self._choices(),
            "default_steps": module.default_steps,
            "noise": self._noise(),
        }

    def _noise(self) -> dict[str, Any] | None:
        """The control of the noise over a drawing; None for a module that cannot redraw."""
        try:
            low, high = self.end.sigmas
        except ConfigError:
            return None
        low, high = max(_SIGMAS[0], low), min(max(_SIGMAS[1], 2 * low), high)
        return {"name": "sigma", "range": [low, high], "value": min(max(Wish.sigma, low), high)}

    def as_teacher(self, wish: Wish) -> Wish:
        return wish if self.module.label_dropout else replace(wish, guidance=None)

    def _choices(self) -> list[int]:
        """Numbers of steps that the module takes, ascending; its own is among them."""
        offered = _STEPS_OF_DIFFUSION if self.diffuses else _STEPS
        return sorted({self.module.default_steps, *filter(self._takes, offered)})

    def _takes(self, steps: int) -> bool:
        try:
            self.module.sampling_levels(steps, None)
        except ConfigError:
            return False
        return True


def _picture(images: Tensor) -> Tensor:
    """The first of images (B, C, H, W) in [-1, 1], as (C, H, W) uint8 on the CPU."""
    return to_pixels(images)[0].cpu()
