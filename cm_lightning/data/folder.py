"""Any folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cm_lightning.data.base import GenerativeDataModule, Mirrored
from cm_lightning.data.images import to_unit_range
from cm_lightning.errors import DataError

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class _Files(Dataset[tuple[Tensor, Tensor]]):
    """Image files, read when asked for."""

    def __init__(self, paths: list[Path], labels: list[int], transform: v2.Transform, mode: str) -> None:
        self.paths, self.labels, self.transform, self.mode = paths, labels, transform, mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                pixels: Tensor = self.transform(file.convert(self.mode))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as an image: repair or remove it") from error
        return to_unit_range(pixels), torch.tensor(self.labels[index])


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
        self.root, self.size, self.channels, self.flip = Path(root), size, channels, flip
        self.image_shape = (channels, size, size)

    def load(self, split: str) -> Dataset[tuple[Tensor, Tensor]]:
        ready_split = (self.root / "train").is_dir() and (self.root / "val").is_dir()
        paths, labels = _list_images(self.root, split) if ready_split else _list_images(self.root)
        if not ready_split:
            chosen = _held_out(labels) if split == "val" else ~_held_out(labels)
            paths, labels = ([items[i] for i in chosen.nonzero()[:, 0].tolist()] for items in (paths, labels))
        transform = v2.Compose([v2.PILToTensor(), v2.Resize(self.size), v2.CenterCrop(self.size)])
        return _Files(paths, labels, transform, "RGB" if self.channels == 3 else "L")

    def training_set(self) -> Dataset[tuple[Tensor, Tensor]]:
        return Mirrored(self.split("train")) if self.flip else self.split("train")


def _list_images(root: Path, split: str = "") -> tuple[list[Path], list[int]]:
    """The images below root/split and their classes, which are those of root/train if there are splits."""
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: set --data.root to a folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
    if len(paths) < 2:
        raise DataError(f"{folder} has {len(paths)} image(s): expected at least 2, of {', '.join(sorted(_ENDINGS))}")
    classes = _classes(root / "train" if split else root)
    tops = [p.relative_to(folder).parts[0] for p in paths]
    if not classes:
        return paths, [0] * len(paths)
    if strangers := set(tops) - set(classes):
        raise DataError(f"{folder / min(strangers)} is none of the classes of {root / 'train'}: move or remove it")
    return paths, [classes.index(top) for top in tops]


def _classes(folder: Path) -> list[str]:
    """The sub-folders in alphabetical order, if all images lie in sub-folders; else none."""
    parts = [p.relative_to(folder).parts for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS]
    return [] if any(len(names) == 1 for names in parts) else sorted({names[0] for names in parts})


def _held_out(labels: list[int]) -> Tensor:
    """Every tenth of each class, and at least one image in all."""
    seen: dict[int, int] = {}
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for i, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        chosen[i] = seen[label] % 10 == 0
    chosen[-1] |= not chosen.any()
    return chosen
