"""Text-to-image models behind the page: a pipeline of diffusers, with LoRA or a student's network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cm_lightning.core.editing import noise_at
from cm_lightning.core.noise import unit_noise
from cm_lightning.core.stream_batch import Stages
from cm_lightning.errors import ConfigError
from cm_lightning.images import picture, to_pixels
from cm_lightning.latent.draw import draw
from cm_lightning.latent.few_step import FewStep, only_one
from cm_lightning.latent.pipelines import few_step_pipeline, image_to_image
from cm_lightning.latent.stages import lcm_stages
from cm_lightning.serve.drawer import Drawer
from cm_lightning.serve.wish import Wish

_STEPS = (1, 2, 4, 8)
_USUAL_STEPS = 4
_GUIDANCE = (1.0, 8.0)
#: How a model is drawn that stands beside as the teacher.
TEACHER_STEPS, _TEACHER_GUIDANCE = 50, 7.5


class PromptDrawer(Drawer):
    """Draws images from prompts, and redraws drawings.

    Args:
        pipe: a pipeline of Stable Diffusion's family, with its scheduler set.
        name: how the page calls it.
        how: how its student is drawn, if it says so.
        steps: its own number of steps; that of the student, or a usual one, if None.
    """

    def __init__(self, pipe: Any, name: str, how: FewStep | None = None, steps: int | None = None) -> None:
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        super().__init__(pipe.unet, name, (3, side, side))
        self.pipe, self.redrawing, self.how = pipe, image_to_image(pipe), how
        self.steps = steps or (how.steps if how else _USUAL_STEPS)
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def load(cls, path: str, loras: Mapping[str, float], device: torch.device, dtype: str) -> PromptDrawer:
        """Load a pipeline, by a folder or a name on the hub, and LoRA with their weights."""
        told = only_one(path, list(loras))
        how = told[1] if told else None
        name = " + ".join([path, *loras])
        return cls(few_step_pipeline(path, loras, None, device, dtype, how=how), name, how)

    @classmethod
    def load_teacher(cls, path: str, device: torch.device, dtype: str) -> PromptDrawer:
        """Load a pipeline that draws in many steps, with guidance."""
        return cls(few_step_pipeline(path, {}, "trailing", device, dtype), path, steps=TEACHER_STEPS)

    @property
    def kind(self) -> str:
        _, height, width = self.shape
        return f"{width} x {height} pixels from prompts"

    def pixels(self, wish: Wish, steps: int | None, drawing: Tensor | None) -> Tensor:
        prompts = [wish.prompt or ""]
        if drawing is not None:
            again = self._how_again(wish, steps)
            return draw(self.redrawing, prompts, image=picture(to_pixels(drawing)), **again)[0]
        how = self._how(wish, steps)
        if wish.seed != how["seed"]:
            how["latents"] = self._latents(wish.seed)
        return draw(self.pipe, prompts, **how)[0]

    def stages(self, wish: Wish, steps: int | None) -> Stages:
        return lcm_stages(self.redrawing, wish.prompt or "", **self._how_again(wish, steps))

    def _how(self, wish: Wish, steps: int | None, least: int = 1) -> dict[str, Any]:
        """How a wish is drawn, in ``least`` steps or more: the arguments of :func:`draw`."""
        if wish.label is not None:
            raise ConfigError("label: this model takes a prompt in its place: leave it out")
        steps, guidance = steps or self.steps, 1.0 if wish.guidance is None else wish.guidance
        if self.how and self.how.departures(steps, guidance):
            raise ConfigError(f"{self.name} was distilled for {self.how}: leave out other steps and guidance")
        steps = max(steps, least)
        options = self.how.options(steps) if self.how else {}
        return {"steps": steps, "guidance": guidance, "seed": int(wish.seed), **options}

    def _how_again(self, wish: Wish, steps: int | None) -> dict[str, Any]:
        """The same for a drawing."""
        least = math.ceil(1 / wish.strength)  # of which at least one remains
        return {"strength": wish.strength, **self._how(wish, steps, least)}

    def _latents(self, seed: float) -> Tensor:
        """Noise between that of two seeds; what a scheduler adds later is that of the lower one."""
        config, like = self.pipe.unet.config, next(self.pipe.unet.parameters())
        side = config.sample_size
        return unit_noise([1, config.in_channels, side, side], [noise_at(seed)], like.device, like.dtype)

    def controls(self) -> dict[str, Any]:
        return {
            "prompt": True,
            "classes": 0,
            "guidance": None if self.how else [*_GUIDANCE, 1.0],
            "steps": [self.steps] if self.how else sorted({*_STEPS, self.steps}),
            "default_steps": self.steps,
            "noise": {"name": "strength", "range": [0.1, 1.0], "value": Wish.strength},
        }

    def as_teacher(self, wish: Wish) -> Wish:
        return replace(wish, guidance=_TEACHER_GUIDANCE)
