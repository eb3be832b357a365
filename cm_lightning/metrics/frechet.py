"""Frechet distances of samples to real images, shared out over the ranks of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from cm_lightning.errors import CheckpointError
from cm_lightning.files import replacing
from cm_lightning.metrics.extractor import Extractor

_STATE = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")

#: (images (B, C, H, W) in [-1, 1], labels (B,) or None), again and again.
Batches = Iterable[tuple[Tensor, "Tensor | None"]]


class FrechetScores:
    """The Frechet distance of features, and the agreement of images with the labels they were asked for.

    Each rank gives its own share of the images; all get the score of the whole. The distance is torchmetrics', so with
    :class:`Inception` it is the FID that others report.

    Args:
        extractor: of the features.
        across_ranks: whether all ranks ask for the score of all their images together; else each has its own.
    """

    def __init__(self, extractor: Extractor, across_ranks: bool = True) -> None:
        self.extractor = extractor
        with torch.random.fork_rng(devices=[]):  # a network's first weights are no numbers of the training's
            self.distance, self.agreement = extractor.distance(), MeanMetric()
        if not across_ranks:
            self.distance.distributed_available_fn = self.agreement.distributed_available_fn = lambda: False

    def to(self, device: torch.device) -> None:
        """Work there; Apple's accelerator lacks the float64 that covariances need, and leaves it to the CPU."""
        device = torch.device("cpu") if device.type == "mps" else device
        self.distance, self.agreement = self.distance.to(device), self.agreement.to(device)

    def add_reference(self, images: Iterable[Tensor]) -> None:
        """Take real images, in batches, as what others are compared with."""
        for batch in images:
            self.distance.update(self._prepared(batch), real=True)

    def __call__(self, batches: Batches) -> dict[str, float]:
        """Scores of images and the labels they were asked for: the distance by its name, and ``accuracy`` if told."""
        self.distance.reset()
        self.agreement.reset()
        self.agreement.update(torch.empty(0))  # a rank without images still takes part in the sum
        for images, labels in batches:
            prepared = self._prepared(images)
            self.distance.update(prepared, real=False)
            classes = self.extractor.classify(prepared) if labels is not None else None
            if labels is not None and classes is not None:
                right = (
                    (classes == labels.to(classes.device)).reshape(len(classes), -1).all(1)
                )  # each of several labels
                self.agreement.update(right.float())
        scores = {self.extractor.name: float(self.distance.compute())}
        accuracy = float(self.agreement.compute())
        return scores if math.isnan(accuracy) else {**scores, "accuracy": accuracy}

    def save_reference(self, path: Path, write: bool) -> None:
        """Write the statistics of the real images of all ranks; all call it, and one writes."""
        with self.distance.sync_context():
            state = {name: getattr(self.distance, name).clone() for name in _STATE}
        if write:
            with replacing(path) as temporary:
                save_file(state, temporary)

    def load_reference(self, path: Path) -> None:
        """Read what :meth:`save_reference` wrote; one rank does, for the sum over ranks is taken.

        Raises:
            CheckpointError: the file is damaged, or of another extractor.
        """
        try:
            state = load_file(path)
            for name in _STATE:
                held = getattr(self.distance, name)
                held.copy_(state[name].reshape(held.shape))
        except Exception as error:
            raise CheckpointError(f"{path} holds no reference statistics: remove it, they are made anew") from error

    def _prepared(self, images: Tensor) -> Tensor:
        return self.extractor.prepare(images.float()).to(self.distance.device)
