"""Captioned images in the tar shards of WebDataset and LAION."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from cm_lightning.cache import cache_folder
from cm_lightning.data.base import GenerativeDataModule, Mirrored
from cm_lightning.data.decode import Decoder
from cm_lightning.data.layout import members
from cm_lightning.data.shards import BLOCK, find_shards, shard_index
from cm_lightning.errors import DataError


class _Samples(Dataset[tuple[Tensor, str]]):
    """Captioned images in shards, read on demand.

    Args:
        shards: the shards that the rows refer to.
        rows: (N, 6), each with the number of a shard and a row of its :func:`shard_index`.
        decode: gives the images their shape.
    """

    def __init__(self, shards: list[Path], rows: Tensor, decode: Decoder) -> None:
        self.shards, self.rows, self.decode = shards, rows, decode

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        number, image_at, image_size, caption_at, caption_size, is_json = self.rows[index].tolist()
        shard = self.shards[number]
        # opened each time: thousands of open shards would reach the limit, and workers would share a position
        with shard.open("rb") as file:
            member, image = _read(file, image_at, image_size)
            _, caption = _read(file, caption_at, caption_size)
        name = f"{member} in {shard}"
        return self.decode(io.BytesIO(image), name), _text(caption, bool(is_json), name)


class CaptionedShards(GenerativeDataModule):
    """WebDataset shards of captioned images; batches are (images (B, C, H, W) in [-1, 1], B captions).

    A sample is the files of one name in an uncompressed tar file: ``000000.jpg`` (or .jpeg, .png, .webp) with its
    caption in ``000000.txt``, or under ``caption`` in ``000000.json``. Samples are read in random order, so a run
    resumes exactly and any number of ranks can share them; the disk should be fast at random access. The headers of
    each shard are read once beforehand, 10,000 samples in about 2 seconds. Every 100th sample is held out for
    validation, unless ``val`` names shards. Images of any size are resized and centre-cropped; SDXL's time ids describe
    them as uncropped images of the training size.

    Args:
        shards: a folder of .tar files, a glob, or names with ranges like ``shard-{000000..000009}.tar``.
        val: shards for validation, in the same form.
        size: (height, width), or the side of a square, in pixels.
        channels: 3 for RGB, 1 for grey.
        flip: whether to train on mirror images too; unsuitable for captions that mention left or right.
        background: colour behind transparent images: a name, or #rrggbb.
        cache: folder for the indices of the shards; ``cm_lightning`` in ``$XDG_CACHE_HOME`` (``~/.cache``) if None.
        batch_size, num_workers, seed: see :class:`GenerativeDataModule`.
    """

    def __init__(
        self,
        shards: str,
        val: str | None = None,
        size: int | tuple[int, int] = 512,
        channels: Literal[1, 3] = 3,
        flip: bool = False,
        background: str = "white",
        cache: str | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.shards, self.val, self.flip, self.cache = shards, val, flip, cache_folder(cache)
        self.decode = Decoder(size, channels, background)
        self.image_shape = self.decode.image_shape

    def prepare_data(self) -> None:
        """Index the shards, so that the other ranks of a machine find the indices."""
        for names in filter(None, (self.shards, self.val)):
            self._rows(find_shards(names))

    def load(self, split: str) -> Dataset[Any]:
        names = self.val if self.val and split == "val" else self.shards
        shards = find_shards(names)
        rows = self._rows(shards)
        if len(rows) < 2:
            raise DataError(f"{names} has {len(rows)} captioned image(s): expected at least 2")
        chosen = rows if self.val else rows[members(split, torch.zeros(len(rows)), every=100)]
        return _Samples(shards, chosen, self.decode)

    def training_set(self) -> Dataset[Any]:
        return Mirrored(self.split("train")) if self.flip else self.split("train")

    def _rows(self, shards: list[Path]) -> Tensor:
        tables = [shard_index(path, self.cache) for path in shards]
        return torch.cat([F.pad(table, (1, 0), value=number) for number, table in enumerate(tables)])


def _read(file: io.BufferedReader, at: int, size: int) -> tuple[str, bytes]:
    """A file's name, from the beginning of its header, and its content."""
    file.seek(at - BLOCK)
    data = file.read(BLOCK + size)
    return data[:100].rstrip(b"\0").decode(errors="replace"), data[BLOCK:]


def _text(data: bytes, is_json: bool, name: str) -> str:
    try:
        text = json.loads(data)["caption"] if is_json else data.decode("utf-8-sig")
        return str(text.strip())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name} does not have a caption that is text: repair or remove it") from error
