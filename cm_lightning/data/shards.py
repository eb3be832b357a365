"""Tar shards in WebDataset's convention: the positions of the images and captions in each."""

from __future__ import annotations

import glob
import hashlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cm_lightning.cache import is_kept, keep
from cm_lightning.errors import DataError

BLOCK = 512  # of the tar format: the size of a header; files are padded to a multiple of it
_IMAGES = ("jpg", "jpeg", "png", "webp")
_VERSION = 1  # of the kept indices


def find_shards(names: str) -> list[Path]:
    """The shards of a folder, a glob, or names with ranges in braces; the matches of each pattern are sorted.

    Raises:
        DataError: a folder or glob does not hold shards, or a shard of a range is missing.
    """
    patterns = [f"{glob.escape(names)}/*.tar"] if Path(names).is_dir() else _expand(names)
    paths = [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern, recursive=True)) or [pattern]]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"shard not found: {missing[0]}: set --data.shards (or --data.val) to a folder of .tar files, a glob, or "
            "names like shard-{000000..000009}.tar"
        )
    return paths


def _expand(names: str) -> list[str]:
    """Expand ``a{08..10}`` to a08, a09, a10; several ranges give all combinations."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", names)
    if not found:
        return [names]
    first, last = found.groups()
    numbers = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    return [names[: found.start()] + i + rest for i in numbers for rest in _expand(names[found.end() :])]


def shard_index(path: Path, cache: Path) -> Tensor:
    """The positions of the samples in a shard: (N, 5) int64, kept in ``cache`` as long as the shard does not change.

    A row is (offset of the image, its size, offset of the caption, its size, whether the caption's file is JSON), the
    offsets in bytes from the start of the shard. Samples are in the shard's order; names without an image are ignored.

    Raises:
        DataError: the shard is damaged, or a sample in it does not have a caption.
    """
    state = path.stat()
    identity = f"{_VERSION} {path.resolve()} {state.st_size} {state.st_mtime_ns}"
    kept = cache / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    if is_kept(kept):
        return torch.from_numpy(np.load(kept, allow_pickle=False))
    rows = np.array(_rows(path), dtype=np.int64).reshape(-1, 5)
    keep(kept, lambda temporary: np.save(temporary, rows))
    return torch.from_numpy(rows)


def _rows(path: Path) -> list[tuple[int, ...]]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _members(path):
        folder, slash, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if stem:  # hidden files do not belong to a sample
            samples.setdefault(folder + slash + stem, {})[ending.lower()] = member
    return [_row(path, key, files) for key, files in samples.items() if files.keys() & set(_IMAGES)]


def _row(path: Path, key: str, files: dict[str, tarfile.TarInfo]) -> tuple[int, ...]:
    image = next(files[ending] for ending in _IMAGES if ending in files)
    caption = files.get("txt") or files.get("json")
    if caption is None:
        raise DataError(f"sample {key} of {path} does not have a caption: add {key}.txt or {key}.json, or remove it")
    return image.offset_data, image.size, caption.offset_data, caption.size, caption is not files.get("txt")


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The files in a complete tar file; this is checked because tarfile takes an unreadable header for the end."""
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data
                if member.isreg():
                    end += -(-member.size // BLOCK) * BLOCK
                    yield member
        with path.open("rb") as file:
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("no end mark after the last file")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a complete, uncompressed tar file ({error}): fetch it again, or decompress it"
        ) from error
