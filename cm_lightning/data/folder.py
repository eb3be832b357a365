"""Any folder of images, or a zip file of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from cm_lightning.data.base import GenerativeDataModule, Mirrored
from cm_lightning.data.decode import Decoder, read_image
from cm_lightning.data.layout import Layout, images_in, left_out, read_layout
from cm_lightning.data.tree import Name, Tree, open_tree
from cm_lightning.errors import ConfigError, DataError

_LOOKED_AT = 64  # images that determine the size and the channels of all


class Files(Dataset[tuple[Tensor, Any]]):
    """Image files, read on demand.

    Args:
        tree: the folder or archive of the files.
        names: names of the files.
        targets: the labels (N,) or captions of the images.
        decode: decodes the images to one shape.
    """

    def __init__(self, tree: Tree, names: list[Name], targets: Tensor | Sequence[str], decode: Decoder) -> None:
        self.tree, self.names, self.targets, self.decode = tree, names, targets, decode

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        name = self.names[index]
        with self.tree.open(name) as file:
            return self.decode(file, self.tree.shown(name)), self.targets[index]


class ImageFolder(GenerativeDataModule):
    """Images of any size in a folder (or a .zip) and its sub-folders, resized and centre-cropped to a square.

    If all images lie in sub-folders of ``root``, each sub-folder is a class, in alphabetical order; EDM's
    ``dataset.json`` at the root has precedence. Images beside such sub-folders are refused. Folders ``train`` and
    ``val`` (or ``valid``, ``validation``, ``test``) at the root are splits; without one for validation every tenth
    image of each class is held out. Test images are never trained on. Links are followed, hidden files are ignored.
    Images of 16 bits or of floats are scaled to 8 bits, and transparent ones are composited on the background.

    Args:
        root: the folder, or a .zip of one.
        size: side of the square in pixels; if None, that of the images, which must all be squares of the same size.
        channels: 3 for RGB, 1 for grey; if None, 1 for grey images and otherwise 3.
        flip: whether to train on the images and their mirror images.
        class_folders: whether sub-folders are classes; if not, the images are without classes.
        background: colour behind transparent images: a name, or #rrggbb.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    def __init__(
        self,
        root: str,
        size: int | None = None,
        channels: Literal[1, 3] | None = None,
        flip: bool = False,
        class_folders: bool = True,
        background: str = "white",
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.flip, self.class_folders = Path(root), flip, class_folders
        self.size, self.channels, self.background = size, channels, background
        self._layouts: dict[str, Layout] = {}
        Decoder(1 if size is None else size, channels or 3, background)  # refuses wrong values early

    @cached_property
    def tree(self) -> Tree:
        """All files of the folder. Raises DataError if the folder does not exist."""
        return open_tree(self.root)

    @cached_property
    def decode(self) -> Decoder:
        """The decoder that gives the images one shape."""
        size, channels = self.size, self.channels
        if size is None or channels is None:
            own_size, own_channels = _looked_up(self.tree)
            size, channels = size or own_size, channels or own_channels
        if size is None:
            raise ConfigError(f"the images in {self.root} differ in size or are not squares: set --data.size")
        return Decoder(size, channels, self.background)

    @property
    def image_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(C, H, W) of the images in a batch."""
        return self.decode.image_shape

    @property
    def num_classes(self) -> int:
        """The number of classes of the images; 0 if they have none."""
        return self._layout("train").num_classes

    def setup(self, stage: str) -> None:
        if stage == "fit":
            rank_zero_info(self.found())

    def found(self) -> str:
        """A line for the start of a run: what the folder holds and whether the network uses its classes."""
        train, val = self._layout("train"), self._layout("val")
        channels, height, width = self.decode.image_shape
        kind = "RGB" if channels == 3 else "grey"
        parts = [f"{self.root}: {len(train.names):,} images to train on, {len(val.names):,} held out, "
                 f"as {height} x {width} {kind}"]  # fmt: skip
        if n := train.num_classes:
            used = getattr(getattr(self.trainer, "lightning_module", None), "num_classes", 0)
            what = "" if used else f", which the network does not use (num_classes: {n} of the backbone would)"
            parts.append(f"{n} classes{what}: {train.counts()}")
        if others := left_out(self.tree):
            parts.append(f"left out, because they are not readable images: {others}")
        return "; ".join(parts)

    def load(self, split: str) -> Files:
        layout = self._layout(split)
        return Files(self.tree, layout.names, layout.labels, self.decode)

    def _layout(self, split: str) -> Layout:
        if split not in self._layouts:
            self._layouts[split] = read_layout(self.tree, split, self.class_folders)
        return self._layouts[split]

    def training_set(self) -> Dataset[Any]:
        return Mirrored(self.split("train")) if self.flip else self.split("train")


def _looked_up(tree: Tree) -> tuple[int | None, Literal[1, 3]]:
    """The side of the images (None if they are not squares of the same size) and their channels."""
    names = images_in(tree)
    if not names:
        raise DataError(f"{tree.root} has 0 image(s): expected at least 2")
    sizes, modes = set(), set()
    for name in names[:: -(-len(names) // _LOOKED_AT)]:
        with tree.open(name) as file:
            image = read_image(file, tree.shown(name))
        sizes.add(image.size)
        modes.add(image.mode)
    width, height = next(iter(sizes))
    return (width if len(sizes) == 1 and width == height else None), (1 if modes == {"L"} else 3)
