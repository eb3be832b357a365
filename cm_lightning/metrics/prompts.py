"""Scores of images against their prompts and against real images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from cm_lightning.images import to_unit_range
from cm_lightning.metrics.extractor import CaptionedDigits, Extractor
from cm_lightning.metrics.frechet import FrechetScores

if TYPE_CHECKING:
    from cm_lightning.metrics.clip_score import ClipScore

_BATCH = 250

Device: TypeAlias = "torch.device | str"


class PromptScores:
    """The Frechet distance to real images, and where possible the accuracy of labels and a CLIP score.

    It works within one process, so other ranks need not call it.

    Args:
        extractor: extractor of the features.
        real: batches of real images (B, 3, H, W) in [-1, 1].
        clip: scores images against prompts.
        device: device to work on.
    """

    def __init__(
        self, extractor: Extractor, real: Iterable[Tensor], clip: ClipScore | None = None, device: Device = "cpu"
    ) -> None:
        self.frechet, self.clip = FrechetScores(extractor, across_ranks=False), clip
        self.frechet.to(torch.device(device))
        self.frechet.add_reference(real)

    @classmethod
    def of_digits(
        cls, digits: int, real: Tensor, clip: ClipScore | None = None, device: Device = "cpu"
    ) -> PromptScores:
        """Scores by the classifier of digits, for ``digits`` in an image, against real ones (N, 3, H, W) uint8."""
        batches = (to_unit_range(batch) for batch in torch.split(real, _BATCH))
        return cls(CaptionedDigits(digits), batches, clip, device)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, prompts: Sequence[str], labels: Tensor | None = None) -> dict[str, float]:
        """Scores by name, for images (N, 3, H, W) uint8, their N prompts and, if known, labels (N,) or (N, K)."""
        batches = [slice(i, i + _BATCH) for i in range(0, len(pixels), _BATCH)]
        scores = self.frechet((to_unit_range(pixels[b]), None if labels is None else labels[b]) for b in batches)
        if self.clip is not None:
            sums = [self.clip(to_unit_range(pixels[b]), prompts[b]) * len(prompts[b]) for b in batches]
            scores["clip_score"] = sum(sums) / len(prompts)
        return scores
