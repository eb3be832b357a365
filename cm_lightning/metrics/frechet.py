"""Frechet distances of features, and the agreement of samples with the labels that were asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from cm_lightning.metrics.judge import Judge


class DigitScores:
    """``frechet_mnist`` and label accuracy by the judge.

    The distance is torchmetrics' with the judge's 64 features in place of Inception's: it is no FID, and its numbers
    compare only with others of the same judge.

    Args:
        judge: the classifier, on the CPU: 64 features of small images need no accelerator.
        real: batches of real images (B, 1, 28, 28) in [-1, 1], the reference.
    """

    def __init__(self, judge: Judge, real: Iterable[Tensor]) -> None:
        self.judge = judge
        self.distance = FrechetInceptionDistance(feature=judge, reset_real_features=False, sync_on_compute=False)
        for images in real:
            self.distance.update(images.cpu(), real=True)

    def __call__(self, images: Tensor, labels: Tensor | None) -> Mapping[str, float]:
        """Scores of images (N, 1, 28, 28) in [-1, 1] and the labels (N,) they were asked for, if any."""
        images = images.cpu()
        self.distance.reset()
        self.distance.update(images, real=False)
        scores = {"frechet_mnist": float(self.distance.compute())}
        if labels is not None:
            scores["accuracy"] = (self.judge.classify(images).argmax(1) == labels.cpu()).float().mean().item()
        return scores
