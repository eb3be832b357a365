"""The target network of consistency methods: a running average of the student."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import nn

from cm_lightning.core.curriculum import Clock, Curriculum
from cm_lightning.core.target_rate import TargetRate


class Follower(Protocol):
    """Weights that follow those of a trained network."""

    def follow(self, clock: Clock) -> None:
        """Update them after the optimizer step of a clock."""

    def restart(self) -> None:
        """Copy the trained network."""


class TargetNetwork:
    """A copy of the student's weights that follows them: target <- mu target + (1 - mu) student (CM, Eq. 8).

    Args:
        student: the network that is trained.
        rate: mu(k).
        curriculum: the curriculum; the rate follows its N(k) and warm-up.
    """

    def __init__(self, student: nn.Module, rate: TargetRate, curriculum: Curriculum) -> None:
        rate.check(curriculum)
        with torch.no_grad():
            self.network = copy.deepcopy(student).requires_grad_(False)
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
