"""Feature extractors, networks by whose features images are compared, with the names of their Frechet distances."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from cm_lightning.domains import COUNT
from cm_lightning.errors import ConfigError
from cm_lightning.images import to_pixels
from cm_lightning.metrics.classifier import FIRST, DigitClassifier, DigitRow, load_classifier
from cm_lightning.metrics.second_classifier import FASHION, SECOND


class Extractor(ABC):
    """A feature extractor, with torchmetrics' Frechet distance for it and the name of that distance."""

    #: The name of the distance; only Inception's is an ``fid``.
    name: str
    #: (C, H, W) of the images that it is made for; None for any.
    image_shape: tuple[int, ...] | None = None

    #: The kind of images that it is made for, ``digits`` or ``clothes``; None for any.
    subject: str | None = None
    #: The name of the accuracy, the share of images of the requested class, if the extractor classifies.
    accuracy_name = "accuracy"

    def named(self, kind: str) -> str:
        """The name of another score of the same features, such as ``kid_mnist``; for Inception it is ``kid``."""
        return self.name.replace("frechet", kind, 1)

    def missing(self) -> str | None:
        """How to get the weights, if they were neither given nor found; otherwise None."""
        return None

    @abstractmethod
    def distance(self) -> FrechetInceptionDistance:
        """Make a new metric that keeps its real features when reset."""

    @abstractmethod
    def identity(self) -> str:
        """Distinguishes weights of the same name, so that features of different weights are never compared."""

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images (B, C, H, W) in [-1, 1] to the input of the metric."""
        return images

    def classify(self, features: Tensor) -> Tensor | None:
        """Classes (B,) or (B, K) of features (B, D); None if the extractor does not classify."""
        return None


class MnistClassifier(Extractor):
    """The shipped classifier of digits of 28 x 28, for ``frechet_mnist`` and label accuracy.

    Args:
        weights: a .safetensors file written by ``cm-lightning train-classifier``; the shipped one if None.
    """

    name = "frechet_mnist"
    image_shape = (1, 28, 28)
    subject = "digits"
    _training = FIRST

    def __init__(self, weights: str | None = None) -> None:
        self.path = Path(weights) if weights else self._training.weights
        self._classifier: DigitClassifier | None = None

    def distance(self) -> FrechetInceptionDistance:
        self._classifier = load_classifier(self.path, self._training.network)
        return FrechetInceptionDistance(feature=self._classifier, reset_real_features=False)

    def identity(self) -> str:
        return digest(self.path)

    def classify(self, features: Tensor) -> Tensor | None:
        assert self._classifier is not None, "distance() loads the classifier"
        logits: Tensor = self._classifier.logits(features)
        return logits.argmax(1)


class SecondMnistClassifier(MnistClassifier):
    """The second shipped classifier, for ``frechet_mnist2`` and ``accuracy2``; nothing is tuned by it.

    Args:
        weights: a .safetensors file written by ``cm-lightning train-classifier --which second``; if None, the
            shipped one.
    """

    name = "frechet_mnist2"
    accuracy_name = "accuracy2"
    _training = SECOND


class FashionClassifier(MnistClassifier):
    """The shipped classifier of Fashion-MNIST's clothes, 28 x 28, for ``frechet_fashion`` and label accuracy.

    Args:
        weights: a .safetensors file written by ``cm-lightning train-classifier --which fashion``; if None, the
            shipped one.
    """

    name = "frechet_fashion"
    subject = "clothes"
    _training = FASHION


class CaptionedDigits(Extractor):
    """The shipped classifier on rows of digits, each 32 x 32 with a border of 2: ``frechet_mnist`` and accuracy.

    Args:
        digits: number of digits side by side in an image; their features are joined.
    """

    name = "frechet_mnist"
    _training = FIRST

    def __init__(self, digits: int = 1) -> None:
        COUNT.check(**{f"{type(self).__name__}: digits": digits})
        self.image_shape = (3, 32, 32 * digits)
        self.digits = digits
        self._classifier: DigitRow | None = None

    def distance(self) -> FrechetInceptionDistance:
        self._classifier = DigitRow(load_classifier(self._training.weights, self._training.network), self.digits)
        return FrechetInceptionDistance(feature=self._classifier, reset_real_features=False)

    def identity(self) -> str:
        return f"{digest(self._training.weights)}-{self.digits}"

    def prepare(self, images: Tensor) -> Tensor:
        """Cut out the digits, in grey and without borders: (B, 3, 32, 32 n) -> (B, n, 28, 28)."""
        grey = images.mean(1)[:, 2:-2]
        return torch.stack([digit[..., 2:-2] for digit in torch.split(grey, 32, -1)], 1)

    def classify(self, features: Tensor) -> Tensor | None:
        """(B, n D) -> (B,), or (B, n) for several digits."""
        assert self._classifier is not None, "distance() loads the classifier"
        return self._classifier.classes(features)


class SecondCaptionedDigits(CaptionedDigits):
    """The second shipped classifier on rows of digits: ``frechet_mnist2`` and ``accuracy2``.

    Args:
        digits: number of digits side by side in an image; their features are joined.
    """

    name = "frechet_mnist2"
    accuracy_name = "accuracy2"
    _training = SECOND


class Inception(Extractor):
    """The Inception-v3 of the usual FID, by torch-fidelity: ``fid``. It needs ``pip install cm-lightning[fid]``.

    Images are rounded to 8 bits first, as if they had been saved.

    Args:
        weights: the weights file of torch-fidelity; downloaded if None.
    """

    name = "fid"

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights

    def named(self, kind: str) -> str:
        return kind

    def distance(self) -> FrechetInceptionDistance:
        if self.weights and not Path(self.weights).is_file():
            raise ConfigError(
                f"there are no Inception weights at {self.weights}: set the extractor's weights to the file"
            )
        try:
            return FrechetInceptionDistance(
                feature=2048, reset_real_features=False, feature_extractor_weights_path=self.weights
            )
        except ModuleNotFoundError as error:
            raise ConfigError("fid needs torch-fidelity: pip install 'cm-lightning[fid]'") from error
        except Exception as error:
            raise ConfigError(
                "Inception's weights could not be loaded or downloaded: fetch torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth and set the extractor's weights to the file"
            ) from error

    def identity(self) -> str:
        return digest(Path(self.weights)) if self.weights else "torch-fidelity"

    def prepare(self, images: Tensor) -> Tensor:
        return color_pixels(images)


def color_pixels(images: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) in [-1, 1] -> (B, 3, H, W) uint8."""
    pixels = to_pixels(images)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def digest(path: Path) -> str:
    """A digest that identifies a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
