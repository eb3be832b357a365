"""Distances of samples to real images, shared out over the ranks of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from cm_lightning.errors import CheckpointError
from cm_lightning.files import replacing
from cm_lightning.metrics.extractor import Extractor
from cm_lightning.metrics.kernel import KeptFeatures, mean_kernel

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
        kernel: whether to tell the kernel distance too, of at most :data:`~cm_lightning.metrics.kernel.LIMIT` images.
    """

    def __init__(self, extractor: Extractor, across_ranks: bool = True, kernel: bool = False) -> None:
        self.extractor, self.kernel = extractor, kernel
        with torch.random.fork_rng(devices=[]):  # a network's first weights are no numbers of the training's
            self.distance, self.agreement = extractor.distance(), MeanMetric()
        if not across_ranks:
            self.distance.distributed_available_fn = self.agreement.distributed_available_fn = lambda: False
        together = across_ranks and dist.is_available() and dist.is_initialized()
        self._place = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self._real = KeptFeatures(*self._place)
        self._real_together: tuple[Tensor, Tensor] | None = None
        self._features = torch.empty(0)  # of the last batch: the network runs once for both distances
        self.distance.inception.register_forward_hook(self._note)

    def _note(self, _module: object, _inputs: object, features: Tensor) -> None:
        self._features = features

    def to(self, device: torch.device) -> None:
        """Work there; Apple's accelerator lacks the float64 that covariances need, and leaves it to the CPU."""
        device = torch.device("cpu") if device.type == "mps" else device
        self.distance, self.agreement = self.distance.to(device), self.agreement.to(device)

    def add_reference(self, images: Iterable[Tensor]) -> None:
        """Take real images, in batches, as what others are compared with."""
        for batch in images:
            self.distance.update(self._prepared(batch), real=True)
            if self.kernel:
                self._real.add(self._features)
        self._real_together = None

    def __call__(self, batches: Batches) -> dict[str, float]:
        """Scores of images and the labels they were asked for: distances by their names, and ``accuracy`` if told."""
        drawn = KeptFeatures(*self._place)
        self.distance.reset()
        self.agreement.reset()
        self.agreement.update(torch.empty(0))  # a rank without images still takes part in the sum
        for images, labels in batches:
            prepared = self._prepared(images)
            self.distance.update(prepared, real=False)
            if self.kernel:
                drawn.add(self._features)
            classes = self.extractor.classify(prepared) if labels is not None else None
            if labels is not None and classes is not None:
                right = (
                    (classes == labels.to(classes.device)).reshape(len(classes), -1).all(1)
                )  # each of several labels
                self.agreement.update(right.float())
        scores = {self.extractor.name: float(self.distance.compute())}
        if self.kernel:
            scores[self.extractor.kernel_name] = self._kernel_distance(drawn)
        accuracy = float(self.agreement.compute())
        return scores if math.isnan(accuracy) else {**scores, "accuracy": accuracy}

    def save_reference(self, path: Path, write: bool) -> None:
        """Write the statistics of the real images of all ranks; all call it, and one writes."""
        with self.distance.sync_context():
            state = {name: getattr(self.distance, name).clone() for name in _STATE}
        if self.kernel:
            real = self._together(self._real)
            state |= {"kept_keys": real.keys.contiguous(), "kept_features": real.features.contiguous()}
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
            if self.kernel:
                self._real.keys, self._real.features = state["kept_keys"], state["kept_features"]
                self._real_together = None
        except Exception as error:
            raise CheckpointError(f"{path} holds no reference statistics: remove it, they are made anew") from error

    def _together(self, kept: KeptFeatures) -> KeptFeatures:
        return kept.of_all_ranks(len(self.distance.real_features_sum), self.distance.device)

    def _kernel_distance(self, drawn: KeptFeatures) -> float:
        """Squared maximum mean discrepancy, without bias: about 0, and so also below, for images of one kind."""
        if self._real_together is None:
            real = self._together(self._real).features
            self._real_together = real, mean_kernel(real)
        real, within_real = self._real_together
        x = self._together(drawn).features
        return float(within_real + mean_kernel(x) - 2 * mean_kernel(x, real))

    def _prepared(self, images: Tensor) -> Tensor:
        return self.extractor.prepare(images.float()).to(self.distance.device)
