"""The target network of consistency methods: a running average of the student."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def move_target(target: nn.Module, student: nn.Module, mu: float) -> None:
    """Target <- mu target + (1 - mu) student (CM, Eq. 8); buffers are copied."""
    torch._foreach_lerp_(list(target.parameters()), list(student.parameters()), 1 - mu)
    for ours, theirs in zip(target.buffers(), student.buffers(), strict=True):
        ours.copy_(theirs)
