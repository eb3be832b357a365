"""Progressive adversarial distillation in latents: SDXL-Lightning, for SD 1.5, 2.1 and XL."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.few_step import trailing_timesteps
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.stages import Ladder, Stage, Stages
from cm_lightning.core.turns import Turns
from cm_lightning.domains import POSITIVE
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.encoder import encoder_of, features_width
from cm_lightning.latent.few_step import FewStep
from cm_lightning.latent.recompute import recompute_activations
from cm_lightning.latent.student import Student
from cm_lightning.modules.discriminator import Discriminator
from cm_lightning.modules.latent_student import FewStepModule
from cm_lightning.modules.staged import StagedDistillation


class LatentAdversarialDistillation(StagedDistillation, FewStepModule):
    """SDXL-Lightning (Lin et al. 2024): fewer and fewer steps, by squared error and by discriminators.

    The student stays a denoiser. It is sampled by Euler's (DDIM's) steps on trailing timesteps, without guidance, in as
    many steps as the last stage's student takes. With :class:`AdaptedUNet` each stage says whether it trains a LoRA,
    which is merged when the stage ends, or the whole network.

    Args:
        stages: the stages, in order; see :class:`Stage`. Guidance w is guidance_scale - 1 of the pipelines.
        clean_in_one_step: whether a student of one step predicts the clean latent itself, as published, regardless of
            what the base predicts. It must first learn to, so a stage by squared error should come first.
        discriminator_levels: timesteps under whose noise the discriminator sees clean latents.
        critic_lr: learning rate of the discriminator; that of the student if None.
        turns: which network trains at a step; both at every step if None.
        base, student, gradient_checkpointing: see :class:`~cm_lightning.modules.latent_student.StudentModule`; cache,
            offload_encoders, optimizer, lr_scheduler, start_from: see its bases. The learning rate's schedule restarts
            in each stage.
    """

    method = "SDXL-Lightning"
    in_stages = True

    def __init__(
        self,
        base: TextToImageBase,
        student: Student,
        stages: Sequence[Stage],
        clean_in_one_step: bool = False,
        discriminator_levels: Sequence[int] = (10, 250, 500, 750),
        critic_lr: float | None = None,
        turns: Turns | None = None,
        gradient_checkpointing: bool = False,
        cache: str | None = None,
        offload_encoders: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        if critic_lr is not None:
            POSITIVE.check(self, critic_lr=critic_lr)
        in_turn, total = Stages(stages), len(base.schedule)
        if any(level not in range(total) for level in discriminator_levels):
            raise ConfigError(
                f"discriminator_levels must be timesteps in 0 ... {total - 1}, got {list(discriminator_levels)}"
            )
        critic = Discriminator(encoder_of(copy.deepcopy(base.unet).train()).float(), features_width(base.unet))
        super().__init__(
            base, student, gradient_checkpointing, cache, offload_encoders, optimizer, lr_scheduler, start_from
        )
        if gradient_checkpointing:
            recompute_activations(critic.encoder)
        self.clean_in_one_step, self.parts = clean_in_one_step, student.parts
        ladder = Ladder(base.schedule, torch.tensor(trailing_timesteps(in_turn.first.teacher_steps, total)))
        self.hold_stages(in_turn, ladder, 1.0, critic, discriminator_levels, turns, critic_lr)
        self.__dict__["_first_encoder"] = {name: p.detach().clone() for name, p in critic.encoder.state_dict().items()}

    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        return self.joined(self.losses(*self.latents_and_conditions(batch), generator))

    def clean(self, x_t: Tensor, t: Tensor, c: Any, stage: Stage) -> Tensor:
        with self.student.only(stage.trains):
            output = self.base.output(self.student.unet, x_t, t, c)
        return output if self._predicts_clean(stage) else self.base.schedule.clean(output, x_t, t)

    def taught(self, x_t: Tensor, t: Tensor, c: Any, index: int) -> Tensor:
        stage = self.stages.stages[index]
        if self.stages.learns_from_student(index):
            output = self.student.target(self.base, self.before, x_t, t, c, None)
        elif stage.guidance:
            return self.guided_teacher(x_t, t, c, x_t.new_full((len(x_t),), stage.guidance))
        else:
            output = self.student.teacher(self.base, x_t, t, c)
        return self.base.schedule.clean(output, x_t, t)

    def features(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        return self.base.output(self.critic.encoder, x_t, t, c)

    def fresh_encoder(self) -> dict[str, Tensor]:
        encoder: dict[str, Tensor] = self.__dict__["_first_encoder"]
        return encoder

    def frozen(self, stage: Stage) -> Sequence[nn.Parameter]:
        return self.student.frozen(stage.trains)

    def merge(self, index: int) -> None:
        self.student.merge(index)

    def forward_one(self) -> None:
        trained = {stage.trains for stage in self.stages.stages}
        with self.student.only("whole" if "whole" in trained else trained.pop()):  # the whole network keeps more
            super().forward_one()

    def _predicts_clean(self, stage: Stage) -> bool:
        return self.clean_in_one_step and stage.student_steps == 1

    def few_step(self) -> FewStep:
        stage = self.stages.at(self.clock)
        return FewStep(stage.student_steps, "euler", "sample" if self._predicts_clean(stage) else None)
