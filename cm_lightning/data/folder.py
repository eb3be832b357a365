"""Any folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cm_lightning.data.base import GenerativeDataModule, Mirrored
from cm_lightning.data.decode import Decoder
from cm_lightning.data.splits import members
from cm_lightning.errors import DataError

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Files(Dataset[tuple[Tensor, Any]]):
    """Image files, read when asked for.

    Args:
        paths: of the files.
        targets: what goes with each image: labels (N,), or captions.
        decode: gives the images their shape.
    """

    def __init__(self, paths: list[Path], targets: Tensor | Sequence[str], decode: Decoder) -> None:
        self.paths, self.targets, self.decode = paths, targets, decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        path = self.paths[index]
        return self.decode(path, str(path)), self.targets[index]


class ImageFolder(GenerativeDataModule):
    """Images in a folder and the folders below it, of any size: resized and centre-cropped to a square.

    If all images lie in sub-folders of ``root``, each sub-folder is a class, in alphabetical order; else all are
    class 0. Every tenth image of each class is held out for validation, unless ``root`` has the folders ``train`` and
    ``val``.

    Args:
        root: the folder.
        size: side of the square in pixels.
        channels: 3 for RGB, 1 for grey.
        flip: whether to train on the images and their mirror images.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    def __init__(
        self,
        root: str,
        size: int = 64,
        channels: Literal[1, 3] = 3,
        flip: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.flip, self.decode = Path(root), flip, Decoder(size, channels)
        self.image_shape = self.decode.image_shape

    def load(self, split: str) -> Files:
        folder = split_folder(self.root, split)
        paths = list_images(folder)
        labels = _labels(paths, folder, self.root if folder == self.root else self.root / "train")
        if folder == self.root:
            chosen = members(split, labels)
            paths, labels = [paths[i] for i in chosen.tolist()], labels[chosen]
        return Files(paths, labels, self.decode)

    def training_set(self) -> Dataset[Any]:
        return Mirrored(self.split("train")) if self.flip else self.split("train")


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split, if there are both ``train`` and ``val``; else ``root``."""
    return root / split if (root / "train").is_dir() and (root / "val").is_dir() else root


def list_images(folder: Path) -> list[Path]:
    """The images in and below a folder, sorted. Raises DataError if they are fewer than 2."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: set --data.root to a folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
    if len(paths) < 2:
        raise DataError(f"{folder} has {len(paths)} image(s): expected at least 2, of {', '.join(sorted(_ENDINGS))}")
    return paths


def _labels(paths: list[Path], folder: Path, reference: Path) -> Tensor:
    """Classes (N,) of the images below ``folder``, numbered as the sub-folders of ``reference``."""
    classes = _classes(reference)
    tops = [p.relative_to(folder).parts[0] for p in paths]
    if not classes:
        return torch.zeros(len(paths), dtype=torch.int64)
    if strangers := set(tops) - set(classes):
        raise DataError(f"{folder / min(strangers)} is none of the classes of {reference}: move or remove it")
    return torch.tensor([classes.index(top) for top in tops])


def _classes(folder: Path) -> list[str]:
    """The sub-folders in alphabetical order, if all images lie in sub-folders; else none."""
    parts = [p.relative_to(folder).parts for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS]
    return [] if any(len(names) == 1 for names in parts) else sorted({names[0] for names in parts})
