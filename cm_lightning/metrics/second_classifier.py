"""A second classifier of digits, independent of the first: another architecture, other digits, another training.

Nothing is tuned by it, so it shows whether a gain by the first classifier is real.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cm_lightning.metrics.classifier import DigitClassifier, Training

SECOND_WEIGHTS = Path(__file__).with_name("mnist_classifier2.safetensors")
FASHION_WEIGHTS = Path(__file__).with_name("fashion_classifier.safetensors")


class SecondDigitClassifier(DigitClassifier):
    """Strided convolutions with batch norm and GELU, average pooling, and two linear layers over digits of 28 x 28.

    Called with images, it gives the features for the Frechet distance ``frechet_mnist2``; ``classify`` gives
    the logits. Train another with ``cm-lightning train-classifier --which second``.
    """

    num_features = 96
    dropout = 0.3

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _convolution(1, 24, kernel=5, stride=2), _convolution(24, 32),
            _convolution(32, 64, stride=2), _convolution(64, 64),
            _convolution(64, 96, stride=2), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.features = nn.Linear(96 * 2 * 2, self.num_features)
        self.logits = nn.Linear(self.num_features, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in [-1, 1] -> features (B, 96)."""
        h = self.convolutions(images.clamp(-1, 1))
        return nnf.gelu(self.features(h.flatten(1)))


def _convolution(channels: int, to: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, to, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(to), nn.GELU())


SECOND = Training(
    SecondDigitClassifier, SECOND_WEIGHTS, epochs=24, batch=64,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-2), dtype=torch.float16,
)  # fmt: skip

#: The same network for the clothes of Fashion-MNIST, of which there are fifteen times as many.
FASHION = replace(SECOND, weights=FASHION_WEIGHTS, epochs=10, batch=128)
