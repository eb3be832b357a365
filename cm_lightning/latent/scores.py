"""How well images fit their prompts, and real images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cm_lightning.data.captioned_folder import CaptionedFolder
from cm_lightning.data.captions import CaptionedDataModule
from cm_lightning.data.images import to_unit_range
from cm_lightning.latent.clip_score import ClipScore
from cm_lightning.metrics.extractor import CaptionedDigits, Extractor, Inception
from cm_lightning.metrics.frechet import FrechetScores

_BATCH = 250


class PromptScores:
    """The Frechet distance to real images; the accuracy of labels and a CLIP score, where they can be told.

    Args:
        extractor: of the features.
        real: batches of real images (B, 3, H, W) in [-1, 1].
        clip: scores images against prompts.
    """

    def __init__(self, extractor: Extractor, real: Iterable[Tensor], clip: ClipScore | None = None) -> None:
        self.frechet, self.clip = FrechetScores(extractor), clip
        self.frechet.add_reference(real)

    @classmethod
    def of_digits(cls, data: CaptionedDataModule, clip: ClipScore | None = None) -> PromptScores:
        """Scores against the training images of digits, by the shipped judge."""
        images, labels = data.labelled("train")
        digits = 1 if labels.ndim == 1 else labels.shape[1]
        return cls(CaptionedDigits(digits), (to_unit_range(batch) for batch in torch.split(images, _BATCH)), clip)

    @classmethod
    def of_folder(
        cls, root: str, n: int, inception: str | None, clip: ClipScore | None
    ) -> tuple[list[str], PromptScores]:
        """N captions of a folder's held-out images in turn, and scores against all its images, by Inception."""
        data = CaptionedFolder(root)
        captions = [caption for _, texts in data.in_order("val") for caption in texts]
        prompts = [captions[i % len(captions)] for i in range(n)]
        return prompts, cls(Inception(inception), _all_images(data), clip)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], labels: Tensor | None = None) -> dict[str, float]:
        """Scores by name of images (N, 3, H, W) in [-1, 1], their N prompts and, where known, labels (N,) or (N, K)."""
        parts = [labels[i : i + _BATCH] if labels is not None else None for i in range(0, len(images), _BATCH)]
        scores = self.frechet(list(zip(torch.split(images, _BATCH), parts, strict=True)))
        if self.clip is not None:
            scores["clip_score"] = self.clip(images, prompts)
        return scores


def _all_images(data: CaptionedFolder) -> Iterator[Tensor]:
    for split in ("train", "val"):
        yield from (images for images, _ in data.in_order(split))
