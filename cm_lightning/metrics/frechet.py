"""Distances of samples to real images, divided among the ranks of a run."""

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

#: Batches of (images (B, C, H, W) in [-1, 1], labels (B,) or None).
Batches = Iterable[tuple[Tensor, "Tensor | None"]]


class FrechetScores:
    """The Frechet distance of features, and the agreement of images with their requested labels.

    Each rank gives its own share of the images; all get the score of the whole. The distance is that of torchmetrics,
    so with :class:`Inception` it is the usual FID.

    Args:
        extractor: extractor of the features.
        across_ranks: whether the score covers the images of all ranks together, or of each rank separately.
        kernel: whether to compute the kernel distance too, of at most :data:`~cm_lightning.metrics.kernel.LIMIT`
            images.
    """

    def __init__(self, extractor: Extractor, across_ranks: bool = True, kernel: bool = False) -> None:
        self.extractor, self.kernel = extractor, kernel
        with torch.random.fork_rng(devices=[]):  # initial weights must not advance the training's generator
            self.distance, self.agreement = extractor.distance(), MeanMetric()
        if not across_ranks:
            self.distance.distributed_available_fn = self.agreement.distributed_available_fn = lambda: False
        together = across_ranks and dist.is_available() and dist.is_initialized()
        self._place = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self._real = KeptFeatures(*self._place)
        self._real_together: tuple[Tensor, Tensor] | None = None
        self._features = torch.empty(0)  # those of the last batch: the network runs once for both distances
        self.distance.inception.register_forward_hook(self._note)

    def _note(self, _module: object, _inputs: object, features: Tensor) -> None:
        self._features = features

    def to(self, device: torch.device) -> None:
        """Move to a device; covariances need float64, which Apple's accelerator lacks, so there the CPU is used."""
        device = torch.device("cpu") if device.type == "mps" else device
        self.distance, self.agreement = self.distance.to(device), self.agreement.to(device)

    def add_reference(self, images: Iterable[Tensor]) -> None:
        """Add batches of real images to the reference."""
        for batch in images:
            self.distance.update(self._prepared(batch), real=True)
            if self.kernel:
                self._real.add(self._features)
        self._real_together = None

    def __call__(self, batches: Batches) -> dict[str, float]:
        """Scores of images by name: distances, and ``accuracy`` if there are labels and the extractor classifies."""
        drawn = KeptFeatures(*self._place)
        self.distance.reset()
        self.agreement.reset()
        self.agreement.update(torch.empty(0))  # a rank without images takes part in the sum too
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
        """Write the statistics of the real images of all ranks; all must call it, and one writes."""
        with self.distance.sync_context():
            state = {name: getattr(self.distance, name).clone() for name in _STATE}
        if self.kernel:
            real = self._together(self._real)
            state |= {"kept_keys": real.keys.contiguous(), "kept_features": real.features.contiguous()}
        if write:
            with replacing(path) as temporary:
                save_file(state, temporary)

    def load_reference(self, path: Path) -> None:
        """Read the file of :meth:`save_reference`, on one rank only, because the sum over ranks is taken.

        Raises:
            CheckpointError: the file is damaged, or belongs to another extractor.
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
            raise CheckpointError(
                f"{path} holds no reference statistics: remove it, and they are computed again"
            ) from error

    def _together(self, kept: KeptFeatures) -> KeptFeatures:
        return kept.of_all_ranks(len(self.distance.real_features_sum), self.distance.device)

    def _kernel_distance(self, drawn: KeptFeatures) -> float:
        """The unbiased squared maximum mean discrepancy: for images of one kind about 0, and so sometimes negative."""
        if self._real_together is None:
            real = self._together(self._real).features
            self._real_together = real, mean_kernel(real)
        real, within_real = self._real_together
        x = self._together(drawn).features
        return float(within_real + mean_kernel(x) - 2 * mean_kernel(x, real))

    def _prepared(self, images: Tensor) -> Tensor:
        return self.extractor.prepare(images.float()).to(self.distance.device)
