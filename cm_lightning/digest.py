"""Checksums of weights in files: a flipped bit in a tensor loads without an error and makes samples worse."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cm_lightning.errors import CheckpointError

#: Environment variable that lets damaged files be read.
ANYWAY = "CM_LIGHTNING_READ_DAMAGED"
#: The key of the digest in the metadata of a file of safetensors.
_KEY = "cm_lightning_digest"


def require_undamaged(path: str | Path) -> None:
    """Compare the checksums in a file of ``torch.save`` with its contents; files of other formats are skipped.

    Raises:
        CheckpointError: a part of the file is damaged.
    """
    if os.environ.get(ANYWAY) or not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive directory raises many kinds of errors
        raise CheckpointError(_line(path, "its contents")) from error
    if damaged:
        raise CheckpointError(_line(path, damaged))


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of safetensors with a digest of the tensors in its metadata."""
    save_file(dict(tensors), path, {**(metadata or {}), _KEY: _digest(tensors)})


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a file of safetensors to the CPU; its tensors are compared with its digest, if it has one.

    Raises:
        CheckpointError: they differ.
    """
    tensors: dict[str, Tensor] = load_file(path)
    with safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get(_KEY)
    if expected and not os.environ.get(ANYWAY) and expected != _digest(tensors):
        raise CheckpointError(_line(path, "a tensor"))
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _line(path: str | Path, part: str) -> str:
    return (
        f"{path} is damaged: the checksum of {part} is wrong: use another copy or checkpoint ({ANYWAY}=1 reads it "
        "anyway)"
    )
