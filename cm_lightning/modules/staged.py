"""Progressive adversarial distillation (SDXL-Lightning, Lin et al. 2024), in pixels or latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cm_lightning.activations import repeated
from cm_lightning.core.adversarial import discriminator_loss, generator_loss
from cm_lightning.core.curriculum import Clock
from cm_lightning.core.held import Held
from cm_lightning.core.noise import expand, unit_noise
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.stages import Ladder, Stage, StageRates, Stages
from cm_lightning.core.turns import Turn, Turns
from cm_lightning.errors import ConfigError
from cm_lightning.modules.critic import Losses, WithCritic
from cm_lightning.modules.discriminator import Discriminator
from cm_lightning.modules.target import Average, StudentOfBefore

#: x_q (B, ...) -> logits (B,).
_Logits: TypeAlias = Callable[[Tensor], Tensor]


def _under(denoiser: Callable[..., Tensor], c: Any, index: int, x: Tensor, t: Tensor) -> Tensor:
    return denoiser(x, t, c, index)


class StagedDistillation(WithCritic):
    """The stages of a progressive distillation, each by a squared error or by a discriminator.

    A student's step ends where the teacher's steps over the same interval do. By squared error both ends must be the
    same point, which is the chord of consistency models with q = r (Salimans & Ho 2022); by a discriminator they need
    only look alike. Every stage has a new discriminator, which starts with the encoder of the first teacher, and new
    moments of the optimizer. A LoRA that the previous stage trained is merged.
    """

    critic: Discriminator
    ladder: Ladder
    sigma_data: float
    #: The network of the previous student. It is in checkpoints, so a run can resume in any stage.
    before: nn.Module
    #: What a stage may train, for a student of which it trains a part.
    parts: tuple[str, ...] = ()

    def hold_stages(
        self,
        stages: Stages,
        ladder: Ladder,
        sigma_data: float,
        discriminator: Discriminator,
        levels: Sequence[float],
        turns: Turns | None,
        critic_lr: float | None,
    ) -> None:
        """Keep the parts of the method.

        Args:
            stages: the stages, in order.
            ladder: the levels of the first teacher.
            sigma_data: standard deviation of the data, for the weight of the squared error.
            discriminator: the critic.
            levels: levels of the noise under which the discriminator sees clean ends.
            turns, critic_lr: see :class:`WithCritic`.

        Raises:
            ConfigError: the learning rate has a schedule that cannot restart in each stage, or a stage does not say
                what it trains.
        """
        self.stages, self.ladder, self.sigma_data = stages, ladder, sigma_data
        for stage in self.stages.stages:
            ladder.stride(stage.teacher_steps)
            if self.parts and not stage.trains:
                choice = " or ".join(self.parts)
                raise ConfigError(f"stages: {stage} must set trains to {choice}, because the student has both")
            if stage.trains and not self.parts:
                raise ConfigError(f"stages: {stage} sets trains, which is for the student AdaptedUNet: leave it out")
        if not (self.lr_scheduler is None or isinstance(self.lr_scheduler, RateSchedule)):
            raise ConfigError("lr_scheduler must be a RateSchedule, such as HoldThenCosine: it restarts in each stage")
        self.lr_scheduler = StageRates(self.stages, self.lr_scheduler)
        self.hold_critic(discriminator, turns, critic_lr)
        if not levels:
            raise ConfigError("discriminator_levels must be given: noise levels for the discriminator's clean images")
        self.discriminator_levels = list(levels)
        follower = StudentOfBefore(self.backbone, self.stages.takes_student)
        self.before, self.followers = follower.network, (follower,)

    @abstractmethod
    def clean(self, x_t: Tensor, t: Tensor, c: Any, stage: Stage) -> Tensor:
        """The student's estimate of the clean image at x_t (B, ...), t (B,)."""

    @abstractmethod
    def taught(self, x_t: Tensor, t: Tensor, c: Any, index: int) -> Tensor:
        """The estimate by the teacher of a stage, without gradients."""

    @abstractmethod
    def features(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        """The features of the discriminator's encoder at x_t (B, ...), t (B,)."""

    @abstractmethod
    def fresh_encoder(self) -> dict[str, Tensor]:
        """The weights with which a discriminator starts."""

    def frozen(self, stage: Stage) -> Sequence[nn.Parameter]:
        """The weights of the student that a stage leaves as they are."""
        return ()

    def merge(self, index: int) -> None:
        """Merge the LoRA of the previous stage, if there is one, and start that of a stage."""

    def forward_one(self) -> None:
        super().forward_one()  # type: ignore[safe-super]
        objectives = {stage.objective for stage in self.stages.stages}
        # the generator's loss keeps a pass for the sample, the critic's one for each of two ends and its beginning
        passes = 5 if "conditional" in objectives else 3 if "unconditional" in objectives else 0
        if passes:
            with repeated(passes):
                self.features(*self.one_sample())

    def losses(self, x: Tensor, c: Any, generator: torch.Generator | None = None) -> Losses:
        """The losses on data x (B, ...) under conditions c."""
        clock, ladder = self.clock, self.ladder
        index, stage, turn = self.stages.index(clock), self.stages.at(clock), self._acting()
        i = ladder.draw(stage.student_steps, len(x), x.device, generator)
        j = i + ladder.stride(stage.student_steps)
        x_t = ladder.point(x, unit_noise(x.shape, generator, x.device, x.dtype), i)
        with torch.no_grad():
            teacher = partial(_under, self.taught, c, index)
            real = ladder.advance(teacher, x_t, i, stage.teacher_steps, stage.teacher_steps // stage.student_steps)
        with torch.set_grad_enabled(torch.is_grad_enabled() and turn.generator):
            clean = self.clean(x_t, ladder.level(i), c, stage)
        if not stage.adversarial:
            error = (clean - ladder.clean(x_t, real, i, j)).square()
            return Losses((expand(ladder.weight(i, self.sigma_data), x) * error).mean(), None)
        fake, logits = ladder.end(x_t, clean, i, j), self._discriminated(stage, x_t, i, j, c, generator)
        return self._adversarial_losses(turn, logits, real, fake)

    def _adversarial_losses(self, turn: Turn, logits: _Logits, real: Tensor, fake: Tensor) -> Losses:
        student = critic = None
        if turn.generator:
            with Held(self.critic.parameters()):
                student = generator_loss(logits(fake))
        if turn.critic:
            logits_real, logits_fake = logits(real), logits(fake.detach())
            critic = discriminator_loss(logits_real, logits_fake)
            self.watch(logits_real, logits_fake, real, fake)
        return Losses(student, critic)

    def _discriminated(
        self, stage: Stage, x_t: Tensor, i: Tensor, j: Tensor, c: Any, generator: torch.Generator | None
    ) -> _Logits:
        """The discriminator of the ends of steps from x_t at i to j; clean ends are seen under noise, the same for all.

        Lin et al. 2024, section 3.4: a discriminator of clean images alone is unstable.
        """
        table = torch.tensor(self.discriminator_levels, device=x_t.device, dtype=self.ladder.levels.dtype)
        drawn = table[torch.randint(len(table), (len(x_t),), device=x_t.device, generator=generator)]
        is_clean = j >= len(self.ladder)
        q = torch.where(is_clean, drawn, self.ladder.level(j))
        z = unit_noise(x_t.shape, generator, x_t.device, x_t.dtype)

        def logits(x_q: Tensor) -> Tensor:
            x_q = torch.where(expand(is_clean, x_q), self.ladder.path.point(x_q, z, q), x_q)
            seen = [self.features(x_q, q, c)]
            if stage.objective == "conditional":
                seen.insert(0, self.features(x_t, self.ladder.level(i), c))
            verdict: Tensor = self.critic(*seen)
            return verdict

        return logits

    def _acting(self) -> Turn:
        """The turns of an adversarial stage; by squared error a discriminator is not trained."""
        return super()._acting() if self.stages.at(self.clock).adversarial else Turn(True, False)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        if self.stages.begins(self.clock):
            self._begin_stage()

    def rewrite(self, change: Callable[[], None]) -> None:
        """Change the backbone's weights in place during training, and every average of them in the same way."""
        change()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Average) and callback.attribute == "backbone":
                with callback.applied(self):
                    change()

    def _begin_stage(self) -> None:
        """Merge the LoRA, and restart discriminator and moments: at the end of a step, so that checkpoints have it."""
        index = self.stages.index(self.clock)
        for optimizer in self.trainer.optimizers:  # first, because a merge needs memory
            optimizer.state.clear()
        self.rewrite(partial(self.merge, index))
        if self.stages.takes_student(self.clock):
            for follower in self.followers:
                follower.restart()  # with the merged weights
        self.critic.restart(self.fresh_encoder(), seed=index)
        self.forget()

    def configure_gradient_clipping(self, *args: Any, **options: Any) -> None:
        for p in self.frozen(self.stages.at(self.clock)):
            p.grad = None  # under DDP it is 0, with which an optimizer would still decay the weight
        super().configure_gradient_clipping(*args, **options)

    def phase(self, clock: Clock) -> str:
        index = self.stages.index(clock)
        return f"stage {index + 1} of {len(self.stages.stages)}: {self.stages.stages[index]}"

    def progress(self, clock: Clock) -> dict[str, float]:
        stage = self.stages.at(clock)
        steps = {"teacher_steps": stage.teacher_steps, "student_steps": stage.student_steps}
        return {"stage": self.stages.index(clock) + 1, **steps}
