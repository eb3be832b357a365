"""ImageNet at 64 x 64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cm_lightning.data.base import GenerativeDataModule, InMemory, MirroredInMemory
from cm_lightning.errors import DataError
from cm_lightning.files import replacing

_FILES = {"train": [f"train_data_batch_{i}.npz" for i in range(1, 11)], "val": ["val_data.npz"]}
_PIXELS = (3, 64, 64)


class ImageNet64(GenerativeDataModule):
    """The downsampled ImageNet of Chrabaszcz et al. 2017: 1,281,167 training and 50,000 validation images.

    image-net.org provides it (after a login) as ``train_data_batch_1.npz`` ... ``_10.npz`` and ``val_data.npz``, each
    with ``data`` (N, 12288) uint8 and ``labels`` (N,) from 1 to 1000, in that release's order of the classes. They are
    unpacked once, in the same folder, to one .npy file for each split (15.7 GB), which all ranks of a machine share in
    memory. For a folder of JPEG files use :class:`ImageFolder` with ``size: 64``.

    Args:
        root: the folder of the npz files.
        flip: whether to train on the images and their mirror images.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    image_shape = _PIXELS

    def __init__(
        self,
        root: str = "data/imagenet64",
        flip: bool = True,
        batch_size: int = 2048,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.flip = Path(root), flip

    def prepare_data(self) -> None:
        for split, names in _FILES.items():
            if not self._unpacked(split, "labels").is_file():
                self._unpack(split, [self.root / name for name in names])

    def load(self, split: str) -> InMemory:
        try:
            pixels = np.load(self._unpacked(split, "images"), mmap_mode="c")  # copy on write: torch wants it writable
            labels = np.load(self._unpacked(split, "labels"))
        except (OSError, ValueError) as error:
            raise DataError(f"the unpacked {split} images in {self.root} are damaged: remove {split}_*.npy") from error
        return InMemory(torch.from_numpy(pixels), torch.from_numpy(labels))

    def training_set(self) -> InMemory | MirroredInMemory:
        images = self.split("train")
        assert isinstance(images, InMemory)
        return MirroredInMemory(images) if self.flip else images

    def _unpacked(self, split: str, what: str) -> Path:
        return self.root / f"{split}_{what}.npy"

    def _unpack(self, split: str, paths: list[Path]) -> None:
        """Unpack batch by batch, so that only one is in memory at a time."""
        labels = [_read(path, "labels").astype(np.int64) - 1 for path in paths]
        with replacing(self._unpacked(split, "images")) as temporary:
            shape = (sum(map(len, labels)), *_PIXELS)
            images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            first = 0
            for path, classes in zip(paths, labels, strict=True):
                data = _read(path, "data")
                if data.shape != (len(classes), np.prod(_PIXELS)) or data.dtype != np.uint8:
                    raise DataError(
                        f"{path} has data of {data.shape} {data.dtype}, but {len(classes)} x 12288 uint8 were expected"
                    )
                images[first : first + len(data)] = data.reshape(-1, *_PIXELS)
                first += len(data)
            images.flush()
        with replacing(self._unpacked(split, "labels")) as temporary:  # last, because it marks the files as complete
            np.save(temporary, np.concatenate(labels))


def _read(path: Path, key: str) -> np.ndarray:  # type: ignore[type-arg]
    if not path.is_file():
        raise DataError(
            f"there is no {path.name} in {path.parent}: set --data.root to the folder of ImageNet64's npz files"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file[key])
    except Exception as error:
        raise DataError(f"{path} is not a complete npz file with data and labels: fetch it again") from error
