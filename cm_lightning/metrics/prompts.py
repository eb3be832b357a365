"""Scores of images against their prompts and against real images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from cm_lightning.images import to_unit_range
from cm_lightning.metrics.extractor import CaptionedDigits, Extractor, SecondCaptionedDigits
from cm_lightning.metrics.feature_scores import FeatureScores
from cm_lightning.metrics.scores import Scores

if TYPE_CHECKING:
    from cm_lightning.metrics.clip_score import ClipScore

_BATCH = 250

Device: TypeAlias = "torch.device | str"


class PromptScores:
    """Distances to real images, precision and recall and, where possible, the accuracy of labels and a CLIP score.

    It works within one process, so other ranks need not call it.

    Args:
        extractors: extractors of the features.
        real: batches of real images (B, 3, H, W) in [-1, 1].
        clip: scores images against prompts.
        device: device to work on.
    """

    def __init__(
        self,
        extractors: Sequence[Extractor],
        real: Iterable[Tensor],
        clip: ClipScore | None = None,
        device: Device = "cpu",
    ) -> None:
        self.scores, self.clip = Scores([FeatureScores(one) for one in extractors], across_ranks=False), clip
        self.scores.to(torch.device(device))
        self.scores.add_reference(real)

    @classmethod
    def of_digits(
        cls, digits: int, real: Tensor, clip: ClipScore | None = None, device: Device = "cpu"
    ) -> PromptScores:
        """Scores by both classifiers of digits, for ``digits`` in an image, against real ones (N, 3, H, W) uint8."""
        batches = (to_unit_range(batch) for batch in torch.split(real, _BATCH))
        return cls([CaptionedDigits(digits), SecondCaptionedDigits(digits)], batches, clip, device)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, prompts: Sequence[str], labels: Tensor | None = None) -> dict[str, float]:
        """Scores by name, for images (N, 3, H, W) uint8, their N prompts and, if known, labels (N,) or (N, K)."""
        batches = [slice(i, i + _BATCH) for i in range(0, len(pixels), _BATCH)]
        scores = self.scores((to_unit_range(pixels[b]), None if labels is None else labels[b]) for b in batches)
        if self.clip is not None:
            sums = [self.clip(to_unit_range(pixels[b]), prompts[b]) * len(prompts[b]) for b in batches]
            scores["clip_score"] = sum(sums) / len(prompts)
        return scores
