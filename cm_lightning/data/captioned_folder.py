"""Any folder of images with captions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import Dataset

from cm_lightning.data.base import GenerativeDataModule, Mirrored
from cm_lightning.data.caption_files import captions_of
from cm_lightning.data.decode import Decoder
from cm_lightning.data.folder import Files
from cm_lightning.data.layout import left_out, read_layout
from cm_lightning.data.tree import Folder
from cm_lightning.errors import DataError


class CaptionedFolder(GenerativeDataModule):
    """Captioned images in a folder and its sub-folders; batches are (images (B, C, H, W) in [-1, 1], B captions).

    A caption is the first line of ``image.txt`` (or ``image.caption``) beside ``image.png``, or the image's row in a
    ``metadata.jsonl`` or ``metadata.csv`` with ``file_name`` relative to its folder; a row has precedence over a text
    file. Every tenth image is held out for validation, unless ``root`` has folders of splits, as for
    :class:`ImageFolder`. Images of any size are resized and centre-cropped; SDXL's time ids describe them as uncropped
    images of the training size.

    Args:
        root: the folder.
        size: (height, width), or the side of a square, in pixels.
        channels: 3 for RGB, 1 for grey.
        flip: whether to train on mirror images too; unsuitable for captions that mention left or right.
        caption_column: column of the captions in metadata files.
        background: colour behind transparent images: a name, or #rrggbb.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] = 512,
        channels: Literal[1, 3] = 3,
        flip: bool = False,
        caption_column: str = "text",
        background: str = "white",
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.flip, self.caption_column = Path(root), flip, caption_column
        self.decode = Decoder(size, channels, background)
        self.image_shape = self.decode.image_shape

    @cached_property
    def tree(self) -> Folder:
        """All files of the folder. Raises DataError if the folder does not exist."""
        if not self.root.is_dir():
            raise DataError(f"folder not found: {self.root}: set --data.root to a folder of images")
        return Folder(self.root)

    def setup(self, stage: str) -> None:
        if stage == "fit" and (others := left_out(self.tree)):
            rank_zero_info(f"{self.root}: left out, because they are not readable images: {others}")

    def load(self, split: str) -> Files:
        names = read_layout(self.tree, split, class_folders=False).names
        captions = captions_of([self.root / name for name in names], self.root, self.caption_column)
        return Files(self.tree, names, captions, self.decode)

    def training_set(self) -> Dataset[Any]:
        return Mirrored(self.split("train")) if self.flip else self.split("train")
