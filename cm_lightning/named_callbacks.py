"""Callbacks by name, so that a recipe changes one of them without repeating the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Any

import cm_lightning
from cm_lightning.complaints import given_values
from cm_lightning.errors import ConfigError, near

#: The suite's names and classes, in the order in which the Trainer gets them: samples are drawn with averaged weights.
NAMES = {
    "compile": "Compile",
    "ema": "EMA",
    "throughput": "Throughput",
    "samples": "SampleGrid",
    "prompts": "PromptGrid",
    "quality": "Quality",
    "save_last": "SaveLast",
    "export": "Export",
    "bad_steps": "SkipBadSteps",
    "progress": "RunProgress",
}
_HELP = """Callbacks by name: {} is one with its defaults, null leaves one out; your own have new names and a class_path

Args:
    compile: compiles the networks for training steps.
    ema: averages the weights, for evaluation.
    throughput: logs the speed of training.
    samples: draws sheets of samples.
    prompts: draws sheets of prompts.
    quality: measures samples.
    save_last: saves checkpoints.
    export: writes what other programs load.
    bad_steps: leaves out steps whose gradients are not finite.
    progress: shows a progress bar.
"""
_LISTED = "trainer.callbacks"


def named_class(arguments: Sequence[str]) -> type:
    """A class of optional callbacks: the suite's, and those for which the files or the command line name a class.

    Args:
        arguments: arguments of the command line.

    Raises:
        ConfigError: a name is unknown, or callbacks are given without names.
    """
    from lightning.pytorch.callbacks import Callback  # deferred: comparing runs does not need it

    kinds: dict[str, Any] = {name: getattr(cm_lightning, kind) for name, kind in NAMES.items()}
    kinds |= dict.fromkeys(_own_names(arguments), Callback)
    named = [(name, kind | None, None) for name, kind in kinds.items()]
    return make_dataclass("Named", named, namespace={"__doc__": _HELP})


def in_order(config: Any) -> list[tuple[str, Any]]:
    """All callbacks of a configuration whose classes are built, in order, each with the option that gave it."""
    named = vars(config.callbacks) if config.get("callbacks") else {}
    return [
        *((f"callbacks.{name}", callback) for name, callback in named.items() if callback),
        *((_LISTED, callback) for callback in _list(config.trainer.callbacks)),
    ]


def forget_absent(config: Any) -> None:
    """Remove callbacks that are left out, so that every name in a saved file is the suite's or has a class."""
    named = vars(config.callbacks) if config.get("callbacks") else {}
    config.callbacks = type(config)(**{name: entry for name, entry in named.items() if entry is not None})


def by_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration in which the suite's callbacks in the Trainer's list have their names, and none is null.

    So a run whose callbacks are a list can be compared with runs that name them.
    """
    named, trainer = config.get("callbacks"), config.get("trainer")
    found = {name: entry for name, entry in named.items() if entry} if isinstance(named, Mapping) else {}
    if not isinstance(trainer, Mapping):
        return {**config, "callbacks": found}
    rest = []
    for entry in _list(trainer.get("callbacks")):
        name = _name(entry)
        if name is None or name in found:
            rest.append(entry)
        else:
            found[name] = entry
    return {**config, "callbacks": found, "trainer": {**trainer, "callbacks": rest}}


def _own_names(arguments: Sequence[str]) -> list[str]:
    """The names that are not the suite's. Each must have a class somewhere; otherwise it is misspelt."""
    places: dict[str, Path | None] = {}
    own: list[str] = []
    for path, value, file in given_values(arguments):
        if path[:1] != ("callbacks",):
            continue
        _check_kind(path, value, file)
        if len(path) > 1 and path[1] not in NAMES:
            places.setdefault(path[1], file)
            if len(path) == 2 and isinstance(value, str):  # the path of a class_path ends here, too
                own.append(path[1])
    for name, file in places.items():
        if name not in own:
            raise ConfigError(
                f"no option --callbacks.{name}{_in(file)}{near(name, [*NAMES, *own])}; choose one of "
                f"{', '.join(NAMES)}, or give a callback of your own its class_path"
            )
        if not name.isidentifier() or iskeyword(name):
            raise ConfigError(f"--callbacks.{name}{_in(file)}: choose a name of letters, digits and underscores")
    return list(places)


def _check_kind(path: tuple[str, ...], value: Any, file: Path | None) -> None:
    """Raise ConfigError unless the callbacks have names and each callback has options."""
    if len(path) > 2 or value is None or isinstance(value, Mapping):
        return
    option = f"--{'.'.join(path)}{_in(file)}"
    if len(path) == 1 and not (isinstance(value, str) and Path(value).is_file()):
        raise ConfigError(
            f"{option} must have names, such as {{ema: {{decay: 0.99}}}}, got {value}: a list is {_LISTED}"
        )
    if len(path) == 2 and not isinstance(value, str):
        raise ConfigError(f"{option} must be its options, a class or null, got {value}")


def _name(entry: Any) -> str | None:
    """The suite's name of a callback in a list."""
    kind = str(entry.get("class_path")).rpartition(".")[2] if isinstance(entry, Mapping) else None
    return next((name for name, known in NAMES.items() if known == kind), None)


def _list(given: Any) -> list[Any]:
    """The list of callbacks; Lightning also takes a single one."""
    return list(given) if isinstance(given, Sequence) else [given] if given else []


def _in(file: Path | None) -> str:
    return f" in {file}" if file else ""
