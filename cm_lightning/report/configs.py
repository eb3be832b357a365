"""The configuration of a run, as the command line saved it: read, and set against those of other runs."""

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

# where a run's files go, what is shown of it while it trains, and what the tables of runs say in columns of their own
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
    """The contents of a config.yaml.

    Raises:
        DataError: the file is missing, damaged, or not the configuration of a run.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"{path}{at}: {error.problem}: mend or remove it") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: it is missing or is not text") from error
    if not isinstance(inner(config, "model"), dict):
        lack = "is empty" if config is None else "has no model"
        raise DataError(f"{path} {lack}: it is not the configuration of a run")
    return dict(config)


def inner(config: object, *names: str) -> Any:
    """What lies under nested names, or None where there is no such thing."""
    for name in names:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def class_name(config: object) -> str:
    """The last part of a ``class_path``; "" if there is none."""
    return str(inner(config, "class_path") or "").rpartition(".")[2]


def origin(path: object) -> str:
    """The run that a checkpoint lies in, as ``NAME/VERSION``; the end of any other path; "" without a path."""
    return "/".join(_run_of(path).parts[-2:]) if isinstance(path, str) else ""


def options(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a run what it is: dotted names, as on the command line, and their values.

    A run's seed, its places and its logs are not among them. Of a checkpoint that a run learns from, only its run's
    name is: the seeds of a method may each have a teacher of their own.
    """
    flat = {
        name: value
        for name, value in _flat("", by_name(config)).items()
        if not any(name == other or name.startswith(f"{other}.") for other in _NOT_COMPARED)
        and not name.endswith(_PLACES)
    }
    return {name: _method_of(value) if name in _ORIGINS else value for name, value in flat.items()}


def differences(configs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each option whose values differ: its name, and its value in each, or "" where it does not occur."""
    known = [options(config) for config in configs]
    names = dict.fromkeys(name for one in known for name in one)
    differing = [name for name in names if any(one.get(name, _ABSENT) != known[0].get(name, _ABSENT) for one in known)]
    return [[name, *(_text(one[name]) if name in one else "" for one in known)] for name in differing]


def _run_of(path: str) -> PurePath:
    """The folder of the run that wrote a checkpoint; a path of another kind is left as it is."""
    file = PurePath(path)
    return file.parent.parent if file.parent.name == "checkpoints" else file


def _method_of(path: object) -> object:
    """The name that all seeds of the run of a checkpoint have."""
    if not isinstance(path, str):
        return path
    run = _run_of(path)
    return run.parent.name if _VERSION.fullmatch(run.name) else str(run)


def _flat(name: str, value: object) -> dict[str, Any]:
    """Dotted names and plain values; a class is its own value, and its arguments lie below it."""
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
    """Items by the names of their classes, since their order says little: EMA, EMA2, or a number without a class."""
    seen: Counter[str] = Counter()
    named = {}
    for item in items:
        name = class_name(item)
        seen[name] += 1
        named[f"{name}{seen[name]}" if seen[name] > 1 or not name else name] = item
    return named


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
