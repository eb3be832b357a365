"""The stages of progressive distillation, in which a student of few steps learns from a teacher of more steps.

All grids are nested: a student of n steps stands on every (T / n)-th of the T levels of the first teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.noise import expand
from cm_lightning.core.path import Path
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.weighting import edm_weight
from cm_lightning.domains import COUNT, NON_NEGATIVE, POSITIVE
from cm_lightning.errors import ConfigError

#: x_t (B, ...), t (B,) -> the estimate of the clean image, (B, ...).
Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """A stage: a student of ``student_steps`` steps learns from a teacher of ``teacher_steps``.

    Attributes:
        teacher_steps: steps of the teacher from noise to image.
        student_steps: steps of the student, a divisor of the teacher's.
        objective: ``mse`` compares the end of a student's step with that of the teacher's steps over the same interval;
            with ``conditional`` a discriminator sees the start of the step and its end, with ``unconditional`` the end
            alone (SDXL-Lightning, Lin et al. 2024, section 3.3).
        length: length relative to the other stages; optimizer steps if they add up to those of the run.
        rate: factor on the learning rate, above 0.
        guidance: w of the teacher, c + w (c - u); only in the stages of the first teacher.
        trains: whether a LoRA is trained or the whole network, ``lora`` or ``whole``; for a student that has both.

    Raises:
        ConfigError: a number is out of range, or the student's steps do not divide the teacher's.
    """

    teacher_steps: int
    student_steps: int
    objective: Literal["mse", "conditional", "unconditional"] = "mse"
    length: float = 1.0
    rate: float = 1.0
    guidance: float = 0.0
    trains: Literal["lora", "whole"] | None = None

    def __post_init__(self) -> None:
        COUNT.check(self, teacher_steps=self.teacher_steps, student_steps=self.student_steps)
        POSITIVE.check(self, length=self.length, rate=self.rate)
        NON_NEGATIVE.check(self, guidance=self.guidance)
        if self.teacher_steps % self.student_steps or self.teacher_steps == self.student_steps:
            raise ConfigError(
                f"Stage: student_steps must be a divisor of teacher_steps, got {self.student_steps} and "
                f"{self.teacher_steps}"
            )
        if self.objective not in ("mse", "conditional", "unconditional"):
            raise ConfigError(f"Stage: objective must be mse, conditional or unconditional, got {self.objective!r}")
        if self.trains not in (None, "lora", "whole"):
            raise ConfigError(f"Stage: trains must be lora, whole or null, got {self.trains!r}")

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained."""
        return self.objective != "mse"

    def __str__(self) -> str:
        part = f" {self.trains}" if self.trains else ""
        return f"{self.teacher_steps} -> {self.student_steps} {self.objective}{part}"


class Stages:
    """The stages of a run, in order.

    Args:
        stages: at least one, or their fields, as in checkpoints. Each learns from the teacher of the previous stage, or
            from its student.

    Raises:
        ConfigError: a stage's teacher takes another number of steps than both, or guidance is requested of a student.
    """

    def __init__(self, stages: Sequence[Stage | Mapping[str, Any]]) -> None:
        if not stages:
            raise ConfigError("stages must be given: a list of teacher_steps, student_steps and objective")
        self.stages = [stage if isinstance(stage, Stage) else Stage(**stage) for stage in stages]
        for before, after in pairwise(self.stages):
            if after.teacher_steps not in (before.teacher_steps, before.student_steps):
                raise ConfigError(
                    f"stages: {after} does not follow {before}: its teacher must take {before.teacher_steps} steps, or "
                    f"{before.student_steps} as the previous student"
                )
            if after.guidance and after.teacher_steps != self.first.teacher_steps:
                raise ConfigError(f"stages: {after} requests guidance of a student that has learned it: set it to 0")

    @property
    def first(self) -> Stage:
        """The first stage, whose teacher is the model that is distilled."""
        return self.stages[0]

    def starts(self, total: int) -> list[int]:
        """The first step of each stage in a run of ``total`` steps."""
        whole, done, starts = sum(stage.length for stage in self.stages), 0.0, []
        for stage in self.stages:
            starts.append(round(total * done / whole))
            done += stage.length
        return starts

    def index(self, clock: Clock) -> int:
        """The number of the stage that a step belongs to, from 0."""
        return max(i for i, start in enumerate(self.starts(clock.total)) if start <= clock.step or i == 0)

    def at(self, clock: Clock) -> Stage:
        """The stage that a step belongs to."""
        return self.stages[self.index(clock)]

    def begins(self, clock: Clock) -> bool:
        """Whether a stage other than the first begins at a step."""
        return clock.step > 0 and self.index(clock) != self.index(Clock(clock.step - 1, clock.total))

    def learns_from_student(self, index: int) -> bool:
        """Whether the teacher of a stage is the student of an earlier one."""
        return self.stages[index].teacher_steps != self.first.teacher_steps

    def takes_student(self, clock: Clock) -> bool:
        """Whether the student becomes the teacher of a stage that begins at a step."""
        before = Clock(clock.step - 1, clock.total)
        return self.begins(clock) and self.at(clock).teacher_steps != self.at(before).teacher_steps


class Ladder:
    """The T levels of the first teacher, numbered by i from 0, pure noise, to T, the clean end.

    Args:
        path: the path of the levels.
        levels: (T,), descending.
    """

    def __init__(self, path: Path, levels: Tensor) -> None:
        self.path, self.levels = path, levels

    def __len__(self) -> int:
        return len(self.levels)

    def stride(self, steps: int) -> int:
        """The number of levels in each of ``steps`` steps. Raises ConfigError unless they divide T."""
        if steps < 1 or len(self) % steps:
            raise ConfigError(
                f"{steps} steps do not divide the {len(self)} levels of the first teacher: choose a divisor"
            )
        return len(self) // steps

    def draw(self, steps: int, n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Draw the numbers of the levels at which a student of ``steps`` steps starts, (n,) int64."""
        return self.stride(steps) * torch.randint(steps, (n,), device=device, generator=generator)

    def level(self, i: Tensor) -> Tensor:
        """The level with number i (B,) < T, (B,)."""
        levels: Tensor = self.levels.to(i.device)[i.clamp(max=len(self) - 1)]
        return levels

    def point(self, x: Tensor, z: Tensor, i: Tensor) -> Tensor:
        """The point at i (B,): noise alone at 0, as in sampling, though the path may leave some of the data there."""
        return self.path.point(torch.where(expand(i == 0, x), 0, x), z, self.level(i))

    def end(self, x_t: Tensor, clean: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The point at j (B,) > i of a DDIM step from x_t at i, by an estimate of the clean image, which it is at T."""
        t, q = self.level(i), self.level(j)
        on_the_way = self.path.step(x_t, self.path.noise(x_t, clean, t), t, q)
        return torch.where(expand(j >= len(self), clean), clean, on_the_way)

    def clean(self, x_t: Tensor, x_q: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The estimate of the clean image by which :meth:`end` leads from x_t to x_q (Salimans & Ho 2022, Eq. 43)."""
        (alpha, sigma), (alpha_q, sigma_q) = self.path.scales(self.level(i)), self.path.scales(self.level(j))
        ratio = sigma_q / sigma
        estimate = (x_q - expand(ratio, x_t) * x_t) / expand(alpha_q - ratio * alpha, x_t)
        return torch.where(expand(j >= len(self), x_q), x_q, estimate.to(x_q.dtype))

    def advance(self, denoiser: Denoiser, x_t: Tensor, i: Tensor, steps: int, count: int) -> Tensor:
        """Take ``count`` DDIM steps on the grid of ``steps`` steps, from x_t at i: the point at i + count strides."""
        stride = self.stride(steps)
        for _ in range(count):
            x_t = self.end(x_t, denoiser(x_t, self.level(i)), i, i + stride)
            i = i + stride
        return x_t

    def weight(self, i: Tensor, sigma_data: float) -> Tensor:
        """EDM's weight of a squared error of the clean image at i (B,)."""
        alpha, sigma = self.path.scales(self.level(i))
        return edm_weight(sigma / alpha, sigma_data)


class StageRates(RateSchedule):
    """The rate of each stage, times a schedule that starts again in each of them.

    Args:
        stages: the stages.
        within: the schedule within a stage; constant if None.
    """

    def __init__(self, stages: Stages, within: RateSchedule | None = None) -> None:
        self.stages, self.within = stages, within

    def __call__(self, step: int, total: int) -> float:
        index, starts = self.stages.index(Clock(step, total)), [*self.stages.starts(total), total]
        rate = self.stages.stages[index].rate
        if self.within is None:
            return rate
        return rate * self.within(step - starts[index], max(1, starts[index + 1] - starts[index]))
