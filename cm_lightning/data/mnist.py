"""MNIST and Fashion-MNIST: the digits that install with a package, or all 70,000 images."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from cm_lightning.data.base import GenerativeDataModule, Headroom, InMemory
from cm_lightning.data.digits import embedded_digits
from cm_lightning.domains import Domain
from cm_lightning.errors import DataError

_UNSIGNED_BYTE = 8  # its code in idx files
_HEADROOM = Domain("a number in [0, 0.2]", lambda value: 0 <= value <= 0.2)  # modules refuse images far out of range
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class _IdxImages(GenerativeDataModule):
    """60,000 training and 10,000 test images of 28 x 28 in ten classes, from idx files."""

    image_shape = (1, 28, 28)
    subject = "digits"
    _archive: type[datasets.MNIST]

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        headroom: float = 0.0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        _HEADROOM.check(self, headroom=headroom)
        self.root, self.download, self.headroom = Path(root), download, headroom

    def training_set(self) -> Dataset[Any]:
        images = self.split("train")
        assert isinstance(images, InMemory)
        return Headroom(images, self.headroom) if self.headroom else images

    def prepare_data(self) -> None:
        if self.download:
            try:
                self._archive(str(self.root), download=True)
            except Exception as error:
                raise DataError(
                    f"{self._archive.__name__} could not be downloaded to {self.root} ({error}): put its idx files "
                    "there and set --data.download=false"
                ) from error

    def load(self, split: str) -> InMemory:
        images, labels = (self._find(name) for name in _FILES[split])
        pixels, classes = read_idx(images, dimensions=3), read_idx(labels, dimensions=1).long()
        if pixels.shape[1:] != (28, 28) or len(pixels) != len(classes):
            raise DataError(
                f"{images} and {labels} do not belong together: {len(pixels)} images, {len(classes)} labels"
            )
        return InMemory(pixels[:, None], classes)

    def _find(self, name: str) -> Path:
        """Find the file, plain or gzipped, in the root or in torchvision's place for it."""
        folders = (self.root, self.root / self._archive.__name__ / "raw")
        for path in (folder / (name + suffix) for folder in folders for suffix in ("", ".gz")):
            if path.is_file():
                return path
        raise DataError(f"there is no {name} in {self.root}: set --data.root to its folder, or --data.download=true")


class FashionMNIST(_IdxImages):
    """Fashion-MNIST. Debian's package ``dataset-fashion-mnist`` installs it in /usr/share/datasets/fashion-mnist.

    Args:
        root: folder of the four idx files (plain or .gz), or where torchvision keeps or puts them.
        download: whether to download them if missing.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
        headroom: headroom of the training images, see :class:`~cm_lightning.data.base.Headroom`.
    """

    subject = "clothes"
    _archive = datasets.FashionMNIST


class MNIST(_IdxImages):
    """MNIST digits.

    Args:
        source: ``embedded``, 4,000 + 1,000 digits that install with a package; or ``torchvision``, 60,000 + 10,000.
        root: with ``torchvision``: folder of the four idx files (plain or .gz), or where torchvision puts them.
        download: with ``torchvision``: whether to download them if missing.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
        headroom: headroom of the training images, see :class:`~cm_lightning.data.base.Headroom`.
    """

    _archive = datasets.MNIST

    def __init__(
        self,
        source: Literal["embedded", "torchvision"] = "embedded",
        root: str = "data",
        download: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        headroom: float = 0.0,
    ) -> None:
        super().__init__(root, download and source == "torchvision", batch_size, num_workers, seed, headroom)
        self.source = source

    def load(self, split: str) -> InMemory:
        return InMemory(*embedded_digits(split)) if self.source == "embedded" else super().load(split)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 array of an idx file.

    Args:
        path: path of the file; it is gunzipped if it ends in .gz.
        dimensions: number of dimensions that the array must have: 3 for images, 1 for labels.

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
        raise DataError(f"{path} is not a complete idx file of {dimensions} dimension(s): fetch it again") from error
