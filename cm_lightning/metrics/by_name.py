"""The measure that computes a score of a given name, such as ``frechet_mnist`` or ``kid``."""

from __future__ import annotations

from cm_lightning.errors import ConfigError
from cm_lightning.metrics.comparison import Comparison
from cm_lightning.metrics.extractor import (
    Extractor,
    FashionClassifier,
    Inception,
    MnistClassifier,
    SecondMnistClassifier,
)
from cm_lightning.metrics.feature_scores import FeatureScores
from cm_lightning.metrics.features import DINOv2, TorchvisionFeatures
from cm_lightning.metrics.kernel import KernelDistance
from cm_lightning.metrics.precision_recall import PrecisionRecall

_COMPARISONS: dict[str, type[Comparison]] = {
    "kid": KernelDistance, "precision": PrecisionRecall, "recall": PrecisionRecall,
}  # fmt: skip
_CLASSIFIERS: tuple[type[MnistClassifier], ...] = (MnistClassifier, SecondMnistClassifier, FashionClassifier)


def measure_named(name: str, weights: str | None = None) -> FeatureScores:
    """The measure that computes the score of this name.

    Args:
        name: ``fid``, ``kid``, ``precision``, ``recall``: features of Inception; ``frechet_NETWORK``, ``kid_NETWORK``,
            ``precision_NETWORK``, ``recall_NETWORK`` with mnist, mnist2, fashion, dinov2 or a classifier of
            torchvision; ``accuracy``, ``accuracy2`` of digits.
        weights: weights of that network; see its extractor.

    Raises:
        ConfigError: the name is unknown, or the network needs weights.
    """
    kind, _, network = name.partition("_")
    for classifier in _CLASSIFIERS:
        if name == classifier.accuracy_name:
            return FeatureScores(classifier(weights), [])
    known = (kind in ("frechet", *_COMPARISONS) and network) or name in ("fid", *_COMPARISONS)
    if not known:
        raise ConfigError(
            f"unknown measure {name!r}: give fid, kid, precision, recall, frechet_mnist, kid_mnist, accuracy, "
            "frechet_resnet50, frechet_dinov2, or such a name of another network"
        )
    comparisons = [_COMPARISONS[kind]()] if kind in _COMPARISONS else []
    return FeatureScores(_extractor(network, weights), comparisons)


def _extractor(network: str, weights: str | None) -> Extractor:
    classifiers = {classifier.name.partition("_")[2]: classifier for classifier in _CLASSIFIERS}
    if not network:
        return Inception(weights)
    if network in classifiers:
        return classifiers[network](weights)
    if network == "dinov2":
        if weights is None:
            raise ConfigError("DINOv2 needs weights: give the folder or the hub name of facebook/dinov2-large")
        return DINOv2(weights)
    return TorchvisionFeatures(network, weights)
