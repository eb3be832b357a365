"""Tar shards by the convention of WebDataset: where in each the images and their captions lie."""

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

from cm_lightning.errors import DataError
from cm_lightning.files import replacing

BLOCK = 512  # of the tar format: a header, and what files are padded to
_IMAGES = ("jpg", "jpeg", "png", "webp")
_VERSION = 1  # of the kept indices


def find_shards(names: str) -> list[Path]:
    """The shards that a folder, a glob, or names with ranges in braces stand for; each pattern's matches sorted.

    Raises:
        DataError: a folder or glob without shards, or a shard of a range that is not there.
    """
    patterns = [f"{glob.escape(names)}/*.tar"] if Path(names).is_dir() else _expand(names)
    paths = [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern, recursive=True)) or [pattern]]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"no shard {missing[0]}: set --data.shards (or --data.val) to a folder of .tar files, a glob, or names "
            "like shard-{000000..000009}.tar"
        )
    return paths


def _expand(names: str) -> list[str]:
    """``a{08..10}`` -> a08, a09, a10; every range against every other."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", names)
    if not found:
        return [names]
    first, last = found.groups()
    numbers = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    return [names[: found.start()] + i + rest for i in numbers for rest in _expand(names[found.end() :])]


def shard_index(path: Path, cache: Path) -> Tensor:
    """Where the samples of a shard lie: (N, 5) int64, kept in ``cache`` from run to run while the shard is the same.

    A row is (offset of the image, its size, offset of the caption, its size, whether the caption's file is JSON), the
    offsets in bytes from the start of the shard. Samples are in the shard's order; files without an image are none.

    Raises:
        DataError: a shard that is not whole, or a sample in it without caption; or ``cache`` cannot be written.
    """
    state = path.stat()
    identity = f"{_VERSION} {path.resolve()} {state.st_size} {state.st_mtime_ns}"
    kept = cache / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    if not kept.is_file():
        rows = np.array(_rows(path), dtype=np.int64).reshape(-1, 5)
        _keep(rows, kept)
    return torch.from_numpy(np.load(kept, allow_pickle=False))


def _keep(rows: np.ndarray, path: Path) -> None:  # type: ignore[type-arg]
    try:
        with replacing(path) as temporary:
            np.save(temporary, rows)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): set --data.cache to another folder") from error


def _rows(path: Path) -> list[tuple[int, ...]]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _members(path):
        folder, slash, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if stem:  # hidden files belong to no sample
            samples.setdefault(folder + slash + stem, {})[ending.lower()] = member
    return [_row(path, key, files) for key, files in samples.items() if files.keys() & set(_IMAGES)]


def _row(path: Path, key: str, files: dict[str, tarfile.TarInfo]) -> tuple[int, ...]:
    image = next(files[ending] for ending in _IMAGES if ending in files)
    caption = files.get("txt") or files.get("json")
    if caption is None:
        raise DataError(f"sample {key} of {path} has no caption: add {key}.txt or {key}.json, or remove it")
    return image.offset_data, image.size, caption.offset_data, caption.size, caption is not files.get("txt")


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The files in a tar file, which must be whole: tarfile takes a header it cannot read for the end."""
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
            f"{path} is no whole, uncompressed tar file ({error}): fetch it again, or decompress it"
        ) from error
