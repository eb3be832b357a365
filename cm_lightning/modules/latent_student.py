"""The base of distillations in latents: a teacher under guidance, and a student that is a whole network or a LoRA."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from cm_lightning.core.guidance import guided
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import Conditioning, TextToImageBase
from cm_lightning.latent.exported import Part, export_student
from cm_lightning.latent.few_step import FewStep
from cm_lightning.latent.recompute import recompute_activations
from cm_lightning.latent.schedulers import few_step_scheduler
from cm_lightning.latent.student import LoRA, Student
from cm_lightning.modules.frozen import Frozen
from cm_lightning.modules.latent import LatentModule


class StudentModule(LatentModule):
    """Base of the distillations of a text-to-image model.

    Args:
        base: the teacher. The student uses its autoencoder and text encoders, too.
        student: the trained part: :class:`WholeUNet`, :class:`LoRA`, or, for methods in stages, :class:`AdaptedUNet`.
        gradient_checkpointing: whether to trade time for memory, in all networks that are trained.
        cache, offload_encoders: see :class:`LatentModule`; optimizer, lr_scheduler, start_from: see its base.

    Raises:
        ConfigError: the student is for methods in stages, and this one is not.
    """

    #: Whether the method has stages, each of which trains a part of the student.
    in_stages = False

    def __init__(
        self,
        base: TextToImageBase,
        student: Student,
        gradient_checkpointing: bool = False,
        cache: str | None = None,
        offload_encoders: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        if student.parts and not self.in_stages:
            raise ConfigError(
                f"student: {type(student).__name__} is for methods in stages, such as LatentAdversarialDistillation: "
                "take WholeUNet or LoRA"
            )
        frozen = Frozen(base.unet)
        student.attach(base)
        super().__init__(base, student.weights, cache, offload_encoders, optimizer, lr_scheduler, start_from)
        self.frozen_base, self.student = frozen, student
        if gradient_checkpointing:
            recompute_activations(student.unet)

    @abstractmethod
    def scheduler(self) -> Any:
        """The diffusers scheduler that draws with the student."""

    def named_like_backbone(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.student.adopted(state)

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        super().load_backbone(state)
        self.student.merge(0)
        for follower in self.followers:
            follower.restart()

    def network_output(self, x: Tensor, t: Tensor, c: Conditioning, w: Tensor) -> Tensor:
        return self.base.output(self.student.unet, x, t, c, self.student.embed(w))

    def guided_teacher(self, z_t: Tensor, t: Tensor, c: Conditioning, w: Tensor) -> Tensor:
        """The teacher's estimate of z_0 at z_t (B, ...), t (B,) under guidance w (B,), both evaluations in a batch."""
        both = self.student.teacher(
            self.base, torch.cat([z_t, z_t]), torch.cat([t, t]), c.followed_by(self.no_prompt(z_t))
        )
        conditional, unconditional = both.chunk(2)
        return self.base.schedule.clean(guided(conditional, unconditional, w), z_t, t)

    def pipeline(self) -> DiffusionPipeline:
        parts = {**self.base.pipe.components, "unet": self.student.unet, "scheduler": self.scheduler()}
        pipe = type(self.base.pipe)(**parts, **_flags(self.base.pipe))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def exported(self, folder: Path) -> list[str]:
        if isinstance(self.student, LoRA):
            return ["--pipeline", getattr(self.base, "path", "BASE"), "--lora", str(folder)]
        return super().exported(folder)

    def export(self, directory: Path) -> None:
        self.student.export(directory, self.pipeline())


class FewStepModule(StudentModule):
    """Base of the students with a fixed number of steps, which are sampled without guidance."""

    #: The name of the method on the card of an export.
    method: str

    @abstractmethod
    def few_step(self) -> FewStep:
        """How the student is to be sampled at this point of its training."""

    def scheduler(self) -> Any:
        return few_step_scheduler(self.few_step(), self.base.pipe.scheduler.config)

    def export(self, directory: Path) -> None:
        part: Part = "lora" if isinstance(self.student, LoRA) else "pipeline"
        base, adapter = getattr(self.base, "path", "BASE"), getattr(self.student, "name", "lcm")
        pipe = self.pipeline()
        pipe.unet = self.student.plain()
        export_student(directory, pipe, self.few_step(), part, self.method, base, adapter)


def _flags(pipe: DiffusionPipeline) -> dict[str, Any]:
    """A pipeline's options besides its components."""
    options = ("requires_safety_checker", "force_zeros_for_empty_prompt")
    return {name: pipe.config[name] for name in options if name in pipe.config}
