"""Several measures of the same samples, which are drawn once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cm_lightning.cache import keep
from cm_lightning.digest import load_tensors, save_tensors
from cm_lightning.errors import CheckpointError
from cm_lightning.metrics.extractor import Extractor, MnistClassifier, SecondMnistClassifier
from cm_lightning.metrics.feature_scores import FeatureScores
from cm_lightning.metrics.kernel import KernelDistance
from cm_lightning.metrics.measure import Measure
from cm_lightning.metrics.precision_recall import PrecisionRecall
from cm_lightning.metrics.shares import PixelShares

#: Batches of (images (B, C, H, W) in [-1, 1], labels (B,) or None).
Batches = Iterable[tuple[Tensor, "Tensor | None"]]


class Scores:
    """The scores of several measures together.

    Args:
        measures: the measures, which are started.
        across_ranks: whether the scores cover the images of all ranks together, or of each rank separately.
    """

    def __init__(self, measures: Sequence[Measure], across_ranks: bool = True) -> None:
        self.measures = measures
        for measure in measures:
            measure.start(across_ranks)

    def to(self, device: torch.device) -> None:
        """Move all measures to a device."""
        for measure in self.measures:
            measure.to(device)

    def add_reference(self, images: Iterable[Tensor]) -> None:
        """Add batches of real images to each reference."""
        for batch in images:
            for measure in self.measures:
                measure.add_reference(batch)

    def __call__(self, batches: Batches) -> dict[str, float]:
        """All scores by name."""
        for measure in self.measures:
            measure.reset()
        for images, labels in batches:
            for measure in self.measures:
                measure.add(images, labels)
        return {name: value for measure in self.measures for name, value in measure.compute().items()}


def usual_measures(extractor: Extractor | None = None, kernel: bool = True) -> list[Measure]:
    """The default measures: features of one extractor, and the shares of mid-grey and black pixels in grey images.

    Args:
        extractor: extractor of the features; both classifiers of digits if None.
        kernel: whether to compute the kernel distance.
    """
    extractors = [MnistClassifier(), SecondMnistClassifier()] if extractor is None else [extractor]
    comparisons = [KernelDistance(), PrecisionRecall()] if kernel else [PrecisionRecall()]
    return [*(FeatureScores(one, comparisons) for one in extractors), PixelShares()]


def save_reference(measure: Measure, path: Path, write: bool) -> None:
    """Write the reference of all ranks' real images, if the path can be written; all ranks must call it, one writes."""
    state = measure.reference()
    if write:
        keep(path, lambda temporary: save_tensors(state, temporary))


def load_reference(measure: Measure, path: Path) -> None:
    """Read the file of :func:`save_reference`, on one rank only.

    Raises:
        CheckpointError: the file is damaged, or belongs to another measure.
    """
    try:
        measure.load_reference(load_tensors(path))
    except Exception as error:
        raise CheckpointError(
            f"{path} does not hold reference statistics: remove it, and they are computed again"
        ) from error
