"""The configuration of a run, as the command line saved it: reading, and comparison with those of other runs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from cm_lightning.errors import DataError
from cm_lightning.named_callbacks import by_name

# where the files of a run go, what is shown while it trains, and what the tables of runs have separate columns for
_NOT_COMPARED = frozenset(
    {
        "base",
        "ckpt_path",
        "config",
        "dry_run",
        "seed_everything",
        "trainer.default_root_dir",
        "trainer.enable_model_summary",
        "trainer.enable_progress_bar",
        "trainer.logger",
        "wandb",
        "weights_only",
    }
)
_PLACES = (".cache", ".dirpath")
_ABSENT = object()
_VERSION = re.compile(r"(seed|version_?)\d+")
_ORIGINS = ("model.start_from", "model.teacher")


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.yaml.

    Raises:
        DataError: the file is missing, damaged, or not the configuration of a run.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"{path}{at}: {error.problem}: repair or remove it") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: it is missing or is not text") from error
    if not isinstance(inner(config, "model"), dict):
        lack = "is empty" if config is None else "does not name a model"
        raise DataError(f"{path} {lack}: it is not the configuration of a run")
    return dict(config)


def inner(config: object, *names: str) -> Any:
    """The value under nested names; None if there is none."""
    for name in names:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def class_name(config: object) -> str:
    """The last part of a ``class_path``; "" if there is none."""
    return str(inner(config, "class_path") or "").rpartition(".")[2]


def origin(path: object) -> str:
    """The run that contains a checkpoint, as ``NAME/VERSION``; the end of any other path; "" without a path."""
    return "/".join(_run_of(path).parts[-2:]) if isinstance(path, str) else ""


def options(config: dict[str, Any]) -> dict[str, Any]:
    """The options that define a run: dotted names, as on the command line, and their values.

    The seed, paths and logs of a run are not included. A checkpoint that a run learns from is included only by the
    name of its run, because each seed of a method may have its own teacher.
    """
    flat = {
        name: value
        for name, value in _flat("", by_name(config)).items()
        if not any(name == other or name.startswith(f"{other}.") for other in _NOT_COMPARED)
        and not name.endswith(_PLACES)
    }
    return {name: _method_of(value) if name in _ORIGINS else value for name, value in flat.items()}


def differences(configs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row for each option that differs: its name, and its value in each configuration, or "" if it is absent."""
    known = [options(config) for config in configs]
    names = dict.fromkeys(name for one in known for name in one)
    differing = [name for name in names if any(one.get(name, _ABSENT) != known[0].get(name, _ABSENT) for one in known)]
    return [[name, *(_text(one[name]) if name in one else "" for one in known)] for name in differing]


def _run_of(path: str) -> PurePath:
    """The folder of the run that wrote a checkpoint; a path of another kind is left as it is."""
    file = PurePath(path)
    return file.parent.parent if file.parent.name == "checkpoints" else file


def _method_of(path: object) -> object:
    """The name that all seeds of a checkpoint's run share."""
    if not isinstance(path, str):
        return path
    run = _run_of(path)
    return run.parent.name if _VERSION.fullmatch(run.name) else str(run)


def _flat(name: str, value: object) -> dict[str, Any]:
    """Flatten to dotted names and plain values; a class is a value, and its arguments follow below its name."""
    if isinstance(value, dict) and "class_path" in value:
        return {name: class_name(value), **_below(name, value.get("init_args") or {})}
    if isinstance(value, dict) and value:
        return _below(name, value)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return _below(name, _named(value))
    return {name: value}


def _below(name: str, values: object) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {name: values}
    parts = [_flat(f"{name}.{key}" if name else str(key), value) for key, value in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def _named(items: Sequence[object]) -> dict[str, Any]:
    """Items by the names of their classes, as their order matters little: EMA, EMA2, or a number without a class."""
    seen: Counter[str] = Counter()
    named = {}
    for item in items:
        name = class_name(item)
        seen[name] += 1
        named[f"{name}{seen[name]}" if seen[name] > 1 or not name else name] = item
    return named


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
