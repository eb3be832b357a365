"""Reading idx files, plain or gzipped: the format of MNIST and its kin."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cm_lightning.errors import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 array of an idx file.

    Args:
        path: of the file; it is gunzipped if it ends in .gz.
        dimensions: how many the array must have: 3 for images, 1 for labels.

    Raises:
        DataError: the file is damaged, cut short or of another kind.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        header = 4 * (1 + dimensions)
        magic, *shape = np.frombuffer(data[:header], ">u4").tolist()
        if magic != _UNSIGNED_BYTE << 8 | dimensions or len(data) != header + math.prod(shape):
            raise ValueError("the header does not fit")
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy())
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is no whole idx file of {dimensions} dimension(s): fetch it again") from error
