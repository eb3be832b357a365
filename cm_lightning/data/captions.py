"""Small captioned data sets of real images, with some phrasings held out from training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils.data import Dataset

from cm_lightning.data.base import GenerativeDataModule
from cm_lightning.data.mnist import MNIST, FashionMNIST
from cm_lightning.images import to_unit_range

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CLOTHES = (
    "t-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_PHRASES = (
    "a handwritten {}",
    "the digit {}",
    "a drawing of a {}",
    "a photo of the digit {}",
    "handwritten digit: {}",
)
_HELD_OUT_PHRASES = ("a drawing of the digit {}", "a photo of a handwritten {}", "the handwritten digit {}")
_CLOTHES_PHRASES = ("a {}", "a photo of a {}", "a grey {}", "a picture of a {}", "clothing: {}")
_HELD_OUT_CLOTHES_PHRASES = ("a photo of a grey {}", "a grey picture of a {}", "a picture of clothing: {}")
_PAIR_PHRASES = (
    "a {0} and a {1}",
    "a {0} to the left of a {1}",
    "the digits {0} and {1}",
    "a {1} to the right of a {0}",
    "handwritten {0}, then {1}",
)
_HELD_OUT_PAIR_PHRASES = ("the {0} and the {1}", "the {0} to the left of the {1}")


class Captioned(Dataset[tuple[Tensor, str]]):
    """Each image with each phrasing: item i is image i % N with phrasing i // N, without random draws.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) or (N, K) int64: the classes that fill the blanks of a phrasing.
        names: names of the classes.
        phrases: phrasings with a blank ``{}``, or K of them, ``{0}`` ``{1}``.
    """

    def __init__(self, images: Tensor, labels: Tensor, names: Sequence[str], phrases: Sequence[str]) -> None:
        self.images, self.labels, self.names, self.phrases = images, labels, names, phrases

    def __len__(self) -> int:
        return len(self.images) * len(self.phrases)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        phrase, image = divmod(index, len(self.images))
        return to_unit_range(self.images[image]), self.caption(image, phrase)

    def caption(self, image: int, phrase: int) -> str:
        """The caption of an image in a phrasing."""
        return self.phrases[phrase].format(*[self.names[i] for i in self.labels[image].reshape(-1).tolist()])

    def all_captions(self) -> list[str]:
        """The captions of all items, in order."""
        return [self.caption(image, phrase) for phrase in range(len(self.phrases)) for image in range(len(self.images))]


class CaptionedDataModule(GenerativeDataModule):
    """Base of the captioned data sets: batches are (images (B, 3, H, W) in [-1, 1], B captions)."""

    names: Sequence[str]
    phrases: Sequence[str]
    held_out_phrases: Sequence[str]
    #: The number of 32 x 32 digits side by side in an image, for their classifier; 0 if the images do not show digits.
    digits = 0

    @abstractmethod
    def labelled(self, split: str) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) uint8 and labels (N,) or (N, K) of ``train`` or ``val``."""

    def load(self, split: str) -> Captioned:
        phrases = self.phrases if split == "train" else self.held_out_phrases
        return Captioned(*self.labelled(split), self.names, phrases)

    def prompts(self, n: int) -> tuple[list[str], Tensor]:
        """The first n prompts in held-out phrasings, the classes in turn, and their labels (n,) or (n, K)."""
        labels = self._labels_in_turn(n)
        turn = len(self.names) ** (1 if labels.ndim == 1 else labels.shape[1])  # all labels once
        phrases = [self.held_out_phrases[i // turn % len(self.held_out_phrases)] for i in range(n)]
        words = [[self.names[i] for i in row.reshape(-1).tolist()] for row in labels]
        return [phrase.format(*names) for phrase, names in zip(phrases, words, strict=True)], labels

    def _labels_in_turn(self, n: int) -> Tensor:
        return torch.arange(n) % len(self.names)


def _colour(images: Tensor, margin: int = 2) -> Tensor:
    """(N, 1, 28, 28) uint8 -> (N, 3, 32, 32): three equal channels, and a border that makes the side a power of two."""
    return nnf.pad(images, [margin] * 4).expand(-1, 3, -1, -1)


class CaptionedMNIST(CaptionedDataModule):
    """MNIST digits of 32 x 32 in three channels with captions such as "a handwritten seven".

    Validation has other digits and other phrasings.

    Args:
        source, root, download: see :class:`cm_lightning.data.mnist.MNIST`.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    image_shape = (3, 32, 32)
    digits = 1
    names: Sequence[str] = _DIGITS
    phrases: Sequence[str] = _PHRASES
    held_out_phrases: Sequence[str] = _HELD_OUT_PHRASES

    def __init__(
        self,
        source: Literal["embedded", "torchvision"] = "embedded",
        root: str = "data",
        download: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self._digits = MNIST(source, root, download)

    def prepare_data(self) -> None:
        self._digits.prepare_data()

    def labelled(self, split: str) -> tuple[Tensor, Tensor]:
        digits = self._digits.load(split)
        return _colour(digits.samples), digits.labels


class CaptionedPairs(CaptionedMNIST):
    """Two MNIST digits side by side, 32 x 64, with captions such as "a seven to the left of a three".

    The pairs are drawn for each seed: two for each digit of the split.

    Args:
        source, root, download, batch_size, num_workers, seed: see :class:`CaptionedMNIST`.
    """

    image_shape = (3, 32, 64)
    digits = 2
    phrases: Sequence[str] = _PAIR_PHRASES
    held_out_phrases: Sequence[str] = _HELD_OUT_PAIR_PHRASES

    def labelled(self, split: str) -> tuple[Tensor, Tensor]:
        images, labels = super().labelled(split)
        generator = torch.Generator().manual_seed(self.seed)
        left = torch.randperm(len(images), generator=generator).repeat(2)
        right = torch.randperm(len(left), generator=generator) % len(images)
        return torch.cat([images[left], images[right]], -1), torch.stack([labels[left], labels[right]], 1)

    def _labels_in_turn(self, n: int) -> Tensor:
        index = torch.arange(n)
        return torch.stack([index // len(self.names) % len(self.names), index % len(self.names)], 1)


class CaptionedFashionMNIST(CaptionedDataModule):
    """Fashion-MNIST of 32 x 32 in three channels with captions such as "a photo of a sneaker".

    Args:
        root, download: see :class:`cm_lightning.data.mnist.FashionMNIST`.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    image_shape = (3, 32, 32)
    names, phrases, held_out_phrases = _CLOTHES, _CLOTHES_PHRASES, _HELD_OUT_CLOTHES_PHRASES

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self._clothes = FashionMNIST(root, download)

    def prepare_data(self) -> None:
        self._clothes.prepare_data()

    def labelled(self, split: str) -> tuple[Tensor, Tensor]:
        clothes = self._clothes.load(split)
        return _colour(clothes.samples), clothes.labels
