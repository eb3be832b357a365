"""What follows the student: the target network of consistency methods, the teachers of stages, and averages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from cm_lightning.core.curriculum import Clock, Curriculum
from cm_lightning.core.target_rate import TargetRate


class Follower(Protocol):
    """Weights that follow those of a network in training."""

    network: nn.Module

    def follow(self, clock: Clock) -> None:
        """Update them after the optimizer step at a clock."""

    def restart(self) -> None:
        """Copy the trained network."""


@runtime_checkable
class Average(Protocol):
    """An average of a module's weights that the module can hold in their place for a while."""

    attribute: str

    def applied(self, pl_module: Any) -> AbstractContextManager[None]:
        """A context in which the module holds the average."""


class TargetNetwork:
    """A copy of the student's weights that follows them: target <- mu target + (1 - mu) student (CM, Eq. 8).

    Args:
        student: the network that is trained.
        rate: mu(k).
        curriculum: the curriculum; the rate follows its N(k) and warm-up.
    """

    def __init__(self, student: nn.Module, rate: TargetRate, curriculum: Curriculum) -> None:
        rate.check(curriculum)
        self.network = _copied(student)
        self.student, self.rate, self.curriculum = student, rate, curriculum

    def mu(self, clock: Clock) -> float:
        """The rate at a step."""
        return self.rate(self.curriculum, clock)

    @torch.no_grad()
    def follow(self, clock: Clock) -> None:
        """Update the average after the student's step; buffers are copied."""
        torch._foreach_lerp_(list(self.network.parameters()), list(self.student.parameters()), 1 - self.mu(clock))
        for ours, theirs in zip(self.network.buffers(), self.student.buffers(), strict=True):
            ours.copy_(theirs)

    def restart(self) -> None:
        """Copy the student again."""
        self.network.load_state_dict(self.student.state_dict())


class StudentOfBefore:
    """The student as it was at the start of its stage, which is its teacher in that stage.

    Args:
        student: the network that is trained.
        begins: whether a stage with a teacher of its own begins at a step.
    """

    def __init__(self, student: nn.Module, begins: Callable[[Clock], bool]) -> None:
        self.network = _copied(student)
        self.student, self.begins = student, begins

    def follow(self, clock: Clock) -> None:
        """Copy the student if the next step begins a stage."""
        if self.begins(Clock(clock.step + 1, clock.total)):
            self.restart()

    def restart(self) -> None:
        """Copy the student."""
        self.network.load_state_dict(self.student.state_dict())


@torch.no_grad()
def _copied(student: nn.Module) -> nn.Module:
    return copy.deepcopy(student).requires_grad_(False)
