"""Sampling levels that were found for a checkpoint, in a file beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.files import replacing
from cm_lightning.interop.folder import find_export
from cm_lightning.interop.foreign import is_foreign
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.consistency import checked_levels
from cm_lightning.run import find_checkpoint, say_once

_KEY = "sampling_sigmas"


def levels_file(path: str | Path) -> Path:
    """The file of the found levels: beside ``last.ckpt`` it is ``last.sampling_sigmas.yaml``.

    Args:
        path: a checkpoint, an export, or another program's file, as ``load_module`` takes it.

    Raises:
        CheckpointError: there is nothing at this path.
    """
    exported = None if is_foreign(path) else find_export(path)
    if is_foreign(path):
        file = Path(str(path).partition(":")[2])
    else:
        file = exported.weights if exported else find_checkpoint(path)
    return file / f"{_KEY}.yaml" if file.is_dir() else file.with_name(f"{file.stem}.{_KEY}.yaml")


def write_found_levels(file: Path, levels: Mapping[int, Sequence[float]], trained_steps: int, how: str) -> None:
    """Add levels to the file, in place of those for the same numbers of steps, or of other weights.

    Args:
        file: the file, of :func:`levels_file`.
        levels: levels by the number of steps.
        trained_steps: optimizer steps of the weights, 0 if unknown; the levels are not used for other weights.
        how: a line that describes how they were found.
    """
    kept = _read(file, trained_steps) if file.is_file() else {}
    content = {"trained_steps": trained_steps, _KEY: {**kept, **{n: list(row) for n, row in levels.items()}}}
    note = f"# {how}\n# The commands sample and export take these levels; remove the file to undo that.\n"
    with replacing(file) as path:
        path.write_text(note + yaml.safe_dump(content, default_flow_style=None))


def take_found_levels(module: GenerativeModule, path: str | Path) -> None:
    """Have a module sample at the levels that were found for its checkpoint, if there are any, and print a line.

    Raises:
        CheckpointError: the file is damaged, or has levels at which the network was not trained.
    """
    file = levels_file(path)
    if not file.is_file() or not isinstance(own := getattr(module, _KEY, None), dict):
        return
    found = _read(file, module.trained_steps)
    if not found:
        say_once(f"{file} belongs to other weights and is not used: search again")
        return
    try:
        for levels in found.values():
            module.sampling_levels(None, levels)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}; remove it, or search again") from error
    own.update(found)
    say_once(f"levels of {', '.join(map(str, sorted(found)))} steps: {file}")


def _read(file: Path, trained_steps: int) -> dict[int, list[float]]:
    """The levels by the number of steps; none if they are those of other weights."""
    try:
        content = yaml.safe_load(file.read_text())
        levels = checked_levels(content[_KEY])
    except (OSError, UnicodeError, yaml.YAMLError, LookupError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{file} does not hold sampling levels: remove it, or search again") from error
    return levels if content.get("trained_steps") == trained_steps else {}
