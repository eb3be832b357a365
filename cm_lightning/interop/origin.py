"""Which program a file of weights is from, by its names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cm_lightning.errors import CheckpointError
from cm_lightning.interop.weights import read_tensors

#: Programs by how the names of their tensors begin.
_STARTS = {"openai": ("input_blocks.0.", "time_embed.0."), "edm": ("map_layer0.", "enc.")}


def origin(path: str | Path) -> str | None:
    """``openai``, ``edm`` or ``diffusers``; None if it is none of theirs."""
    path = Path(path)
    if path.is_dir():
        return "diffusers" if _of_diffusers(path) else None
    try:
        return _by_names(read_tensors(path)) if path.is_file() else None
    except CheckpointError:
        return None


def _by_names(names: Iterable[str]) -> str | None:
    known = list(names)
    return next((program for program, starts in _STARTS.items() if any(n.startswith(starts) for n in known)), None)


def _of_diffusers(folder: Path) -> bool:
    index = next((folder / name for name in ("model_index.json", "config.json") if (folder / name).is_file()), None)
    return index is not None and '"_class_name"' in index.read_text(errors="replace")
