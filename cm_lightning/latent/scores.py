"""How well images fit their prompts, and real images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cm_lightning.data.captioned_folder import CaptionedFolder
from cm_lightning.data.captions import CaptionedDataModule
from cm_lightning.data.images import to_unit_range
from cm_lightning.errors import ConfigError
from cm_lightning.latent.clip_score import ClipScore
from cm_lightning.metrics.extractor import Extractor, Inception
from cm_lightning.metrics.frechet import FrechetScores

_BATCH = 250

Device: TypeAlias = "torch.device | str"


class PromptScores:
    """The Frechet distance to real images; the accuracy of labels and a CLIP score, where they can be told.

    Of one process alone: other ranks need not ask for the same.

    Args:
        extractor: of the features.
        real: batches of real images (B, 3, H, W) in [-1, 1].
        clip: scores images against prompts.
        device: to work on.
    """

    def __init__(
        self, extractor: Extractor, real: Iterable[Tensor], clip: ClipScore | None = None, device: Device = "cpu"
    ) -> None:
        self.frechet, self.clip = FrechetScores(extractor, across_ranks=False), clip
        self.frechet.to(torch.device(device))
        self.frechet.add_reference(real)

    @classmethod
    def of_captions(
        cls, data: CaptionedDataModule, clip: ClipScore | None = None, device: Device = "cpu"
    ) -> PromptScores:
        """Scores against the training images of a captioned data set that has a judge."""
        extractor, images = data.extractor(), data.labelled("train")[0]
        if extractor is None:
            raise ConfigError(f"{type(data).__name__} has no judge: use CaptionedMNIST or CaptionedPairs")
        return cls(extractor, (to_unit_range(batch) for batch in torch.split(images, _BATCH)), clip, device)

    @classmethod
    def of_folder(
        cls, root: str, n: int, inception: str | None, clip: ClipScore | None, device: Device = "cpu"
    ) -> tuple[list[str], PromptScores]:
        """N captions of a folder's held-out images in turn, and scores against all its images, by Inception."""
        data = CaptionedFolder(root)
        captions = [caption for _, texts in data.in_order("val") for caption in texts]
        prompts = [captions[i % len(captions)] for i in range(n)]
        return prompts, cls(Inception(inception), _all_images(data), clip, device)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, prompts: Sequence[str], labels: Tensor | None = None) -> dict[str, float]:
        """Scores by name of images (N, 3, H, W) uint8, their N prompts and, where known, labels (N,) or (N, K)."""
        batches = [slice(i, i + _BATCH) for i in range(0, len(pixels), _BATCH)]
        scores = self.frechet((to_unit_range(pixels[b]), None if labels is None else labels[b]) for b in batches)
        if self.clip is not None:
            sums = [self.clip(to_unit_range(pixels[b]), prompts[b]) * len(prompts[b]) for b in batches]
            scores["clip_score"] = sum(sums) / len(prompts)
        return scores


def _all_images(data: CaptionedFolder) -> Iterator[Tensor]:
    for split in ("train", "val"):
        yield from (images for images, _ in data.in_order(split))
