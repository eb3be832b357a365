"""Which items of a data set without a split of its own are held out for validation."""

from __future__ import annotations

import torch
from torch import Tensor


def members(split: str, labels: Tensor, every: int = 10) -> Tensor:
    """Numbers (M,), rising, of the items of ``train`` or ``val``.

    Args:
        split: ``val`` has every tenth item of each class, and at least one in all; ``train`` has the others.
        labels: (N,) the items' classes; N >= 1.
        every: one of how many is held out.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in set(labels.tolist()):
        held_out[(labels == label).nonzero()[every - 1 :: every, 0]] = True
    held_out[-1] |= not held_out.any()
    return (held_out if split == "val" else ~held_out).nonzero()[:, 0]
