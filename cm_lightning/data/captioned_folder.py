"""Any folder of images with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from cm_lightning.data.base import GenerativeDataModule, Mirrored
from cm_lightning.data.caption_files import captions_of
from cm_lightning.data.decode import Decoder
from cm_lightning.data.folder import Files, list_images, split_folder
from cm_lightning.data.splits import members


class CaptionedFolder(GenerativeDataModule):
    """Captioned images in a folder and the folders below it; batches are (images (B, C, H, W) in [-1, 1], B captions).

    A caption is the first line of ``image.txt`` (or ``image.caption``) beside ``image.png``, or the image's row in a
    ``metadata.jsonl`` or ``metadata.csv`` with ``file_name`` relative to itself; a row goes before a text file. Every
    tenth image is held out for validation, unless ``root`` has the folders ``train`` and ``val``. Images of any size
    are resized and centre-cropped; for SDXL they count as images of the size they are trained at, uncropped.

    Args:
        root: the folder.
        size: (height, width), or the side of a square, in pixels.
        channels: 3 for RGB, 1 for grey.
        flip: whether to train on the images and their mirror images; not where captions tell left from right.
        caption_column: of the captions in metadata files.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] = 512,
        channels: Literal[1, 3] = 3,
        flip: bool = False,
        caption_column: str = "text",
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.flip, self.caption_column = Path(root), flip, caption_column
        self.decode = Decoder(size, channels)
        self.image_shape = self.decode.image_shape

    def load(self, split: str) -> Files:
        folder = split_folder(self.root, split)
        paths = list_images(folder)
        if folder == self.root:
            paths = [paths[i] for i in members(split, torch.zeros(len(paths))).tolist()]
        return Files(paths, captions_of(paths, self.root, self.caption_column), self.decode)

    def training_set(self) -> Dataset[Any]:
        return Mirrored(self.split("train")) if self.flip else self.split("train")
