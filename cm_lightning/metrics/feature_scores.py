"""Scores by the features of a network, computed by all ranks of a run together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cm_lightning.metrics.comparison import AgainstReal, Comparison
from cm_lightning.metrics.extractor import Extractor
from cm_lightning.metrics.kept import LIMIT, KeptFeatures
from cm_lightning.metrics.kernel import KernelDistance
from cm_lightning.metrics.measure import Measure, shared_mean
from cm_lightning.metrics.precision_recall import PrecisionRecall

_SUMS = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")


class FeatureScores(Measure):
    """The Frechet distance of features, comparisons of stored features, and the agreement with requested labels.

    The distance is that of torchmetrics, so with :class:`Inception` it is the usual FID.

    Args:
        extractor: extractor of the features.
        comparisons: comparisons of at most 5,000 features; :class:`KernelDistance` and :class:`PrecisionRecall` if
            None, none if empty.
    """

    def __init__(self, extractor: Extractor, comparisons: Sequence[Comparison] | None = None) -> None:
        self.extractor = extractor
        self.comparisons = (KernelDistance(), PrecisionRecall()) if comparisons is None else tuple(comparisons)
        self.name, self.image_shape, self.subject = extractor.name, extractor.image_shape, extractor.subject

    @property
    def label(self) -> str:
        return type(self.extractor).__name__

    def missing(self) -> str | None:
        return self.extractor.missing()

    def start(self, across_ranks: bool = True) -> None:
        with torch.random.fork_rng(devices=[]):  # initial weights must not advance the training's generator
            self.distance, self._agreement = self.extractor.distance(), shared_mean(across_ranks)
        if not across_ranks:
            self.distance.distributed_available_fn = lambda: False
        together = across_ranks and dist.is_available() and dist.is_initialized()
        self._place = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self._real, self._against = KeptFeatures(*self._place), list[AgainstReal]()
        self._features = torch.empty(0)  # those of the last batch: the network runs once for all scores
        self.distance.inception.register_forward_hook(self._note)
        self.reset()

    def _note(self, _module: object, _inputs: object, features: Tensor) -> None:
        self._features = features

    def to(self, device: torch.device) -> None:
        """Move to a device, or to the CPU for Apple's accelerator, which lacks the float64 that covariances need."""
        device = torch.device("cpu") if device.type == "mps" else device
        self.distance, self._agreement = self.distance.to(device), self._agreement.to(device)

    def reset(self) -> None:
        self._drawn = KeptFeatures(*self._place)
        self.distance.reset()
        self._agreement.reset()
        self._agreement.update(torch.empty(0))  # even a rank without images must take part in the sum

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        self._update(images, real=False)
        if self.comparisons:
            self._drawn.add(self._features)
        classes = self.extractor.classify(self._features) if labels is not None else None
        if labels is not None and classes is not None:
            right = (classes == labels.to(classes.device)).reshape(len(classes), -1).all(1)  # all labels agree
            self._agreement.update(right.float())

    def compute(self) -> dict[str, float]:
        """Distances and shares by name, and the accuracy if there are labels and the extractor classifies."""
        scores = {self.extractor.name: float(self.distance.compute())}
        if self.comparisons:
            drawn = self._together(self._drawn).features
            found = {kind: value for compare in self._comparers() for kind, value in compare(drawn).items()}
            scores |= {self.extractor.named(kind): value for kind, value in found.items()}
        accuracy = float(self._agreement.compute())
        return scores if math.isnan(accuracy) else {**scores, self.extractor.accuracy_name: accuracy}

    def identity(self) -> str:
        return f"sums{f' and {LIMIT} features' if self.comparisons else ''} of {self.extractor.identity()}"

    def add_reference(self, images: Tensor) -> None:
        self._update(images, real=True)
        if self.comparisons:
            self._real.add(self._features)
        self._against = []

    def reference(self) -> dict[str, Tensor]:
        with self.distance.sync_context():
            state = {name: getattr(self.distance, name).clone() for name in _SUMS}
        if self.comparisons:
            real = self._together(self._real)
            state |= {"kept_keys": real.keys.contiguous(), "kept_features": real.features.contiguous()}
        return state

    def load_reference(self, state: dict[str, Tensor]) -> None:
        for name in _SUMS:
            held = getattr(self.distance, name)
            held.copy_(state[name].reshape(held.shape))
        if self.comparisons:
            self._real.keys, self._real.features = state["kept_keys"], state["kept_features"]
        self._against = []

    def _comparers(self) -> list[AgainstReal]:
        if not self._against:
            real = self._together(self._real).features
            self._against = [comparison.against(real) for comparison in self.comparisons]
        return self._against

    def _together(self, kept: KeptFeatures) -> KeptFeatures:
        return kept.of_all_ranks(len(self.distance.real_features_sum), self.distance.device)

    def _update(self, images: Tensor, real: bool) -> None:
        self.distance.update(self.extractor.prepare(images.float()).to(self.distance.device), real=real)
