"""A small classifier of digits, which measures samples as Inception does photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file
from torch import Tensor, nn

from cm_lightning.errors import CheckpointError

WEIGHTS = Path(__file__).with_name("mnist_classifier.safetensors")


class DigitClassifier(nn.Module):
    """A network that maps digits to features, with one more layer, ``logits``, to the ten classes."""

    num_features: int
    #: The share of features that are left out in training.
    dropout: float
    logits: nn.Linear

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in [-1, 1] -> features (B, num_features)."""
        raise NotImplementedError

    def classify(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in [-1, 1] -> logits (B, 10)."""
        return cast(Tensor, self.logits(nnf.dropout(self(images), self.dropout, self.training)))


class FirstDigitClassifier(DigitClassifier):
    """Two convolutions and two linear layers over digits of 28 x 28.

    Called with images, it gives the features for the Frechet distance ``frechet_mnist``; ``classify`` gives the logits.
    Train another with ``cm-lightning train-classifier``.
    """

    num_features = 64
    dropout = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.features = nn.Linear(32 * 7 * 7, self.num_features)
        self.logits = nn.Linear(self.num_features, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in [-1, 1] -> features (B, 64)."""
        h = self.convolutions(images.clamp(-1, 1))
        return nnf.relu(self.features(h.flatten(1)))


class DigitRow(nn.Module):
    """The classifier on each of n digits, (B, n, 28, 28): joined features (B, n D), classes (B,) or (B, n)."""

    def __init__(self, classifier: DigitClassifier, n: int) -> None:
        super().__init__()
        self.classifier, self.n, self.num_features = classifier, n, n * classifier.num_features

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.classifier(images.reshape(-1, 1, 28, 28))
        return features.reshape(len(images), -1)

    def classes(self, features: Tensor) -> Tensor:
        """Joined features -> the digits."""
        logits: Tensor = self.classifier.logits(features.reshape(-1, self.classifier.num_features))
        classes = logits.argmax(1).reshape(-1, self.n)
        return classes[:, 0] if self.n == 1 else classes


@dataclass(frozen=True)
class Training:
    """The settings of a classifier and of its training.

    Args:
        network: class of the classifier.
        weights: the file that the package ships.
        epochs: how often each digit is seen.
        batch: number of digits in a step.
        optimizer: makes the optimizer, with the peak learning rate of a one-cycle schedule.
        dtype: type of the weights in the file.
    """

    network: type[DigitClassifier]
    weights: Path
    epochs: int
    batch: int
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    dtype: torch.dtype = torch.float32


FIRST = Training(
    FirstDigitClassifier, WEIGHTS, epochs=40, batch=100,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3, weight_decay=1e-5),
)  # fmt: skip


def load_classifier(path: Path = WEIGHTS, network: type[DigitClassifier] = FirstDigitClassifier) -> DigitClassifier:
    """Load a classifier with its trained weights, frozen and in eval mode.

    Raises:
        CheckpointError: the file is missing or does not fit.
    """
    classifier = network()
    try:
        classifier.load_state_dict(load_file(path))
    except Exception as error:
        raise CheckpointError(
            f"{path} does not hold weights of the classifier: make them with cm-lightning train-classifier"
        ) from error
    return classifier.eval().requires_grad_(False)


def train_classifier(
    images: Tensor, labels: Tensor, epochs: int, seed: int, training: Training = FIRST
) -> DigitClassifier:
    """Train a classifier on images (N, 1, 28, 28) in [-1, 1], slightly shifted, rotated and scaled, and labels (N,)."""
    torch.manual_seed(seed)
    classifier = training.network()
    steps_per_epoch = len(images) // training.batch
    optimizer = training.optimizer(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.defaults["lr"], total_steps=epochs * steps_per_epoch
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: steps_per_epoch * training.batch].chunk(steps_per_epoch):
            loss = nnf.cross_entropy(classifier.classify(_jitter(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return classifier.eval()


def _jitter(images: Tensor) -> Tensor:
    """Rotate images by up to 10 degrees, scale them by up to 10 %, and shift them by up to 2 pixels."""
    n = len(images)
    angle = (torch.rand(n) - 0.5) * 2 * 0.17
    scale = 1 + (torch.rand(n) - 0.5) * 0.2
    shift = (torch.rand(n, 2) - 0.5) * 2 * (2 / 14)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = nnf.affine_grid(theta, list(images.shape), align_corners=False)
    return nnf.grid_sample(images, grid, padding_mode="border", align_corners=False)
