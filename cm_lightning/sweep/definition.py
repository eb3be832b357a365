"""A sweep file: what W&B's own YAML says, and the command of a trial."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cm_lightning.errors import ConfigError

Values = dict[str, Any]

_DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


@dataclass(frozen=True)
class Sweep:
    """The file's content; ``raw`` is all of it."""

    name: str
    method: str
    parameters: Mapping[str, Mapping[str, Any]]
    metric: str | None
    minimize: bool
    command: list[str]
    program: str | None
    run_cap: int | None
    early_terminate: Mapping[str, Any] | None
    raw: Mapping[str, Any] = field(repr=False)

    def command_line(self, values: Values) -> list[str]:
        """The command of a trial, as ``wandb agent`` builds it from the same file.

        Raises:
            ConfigError: a macro that W&B does not have, or ``${program}`` without one.
        """
        macros = _macros(values, self.program)
        line: list[str] = []
        for template in self.command:
            part = _ENVIRONMENT.sub(lambda match: os.environ.get(match[1], match[1]), str(template))
            if not (part.startswith("${") and part.endswith("}")):
                line.append(part)
            elif (name := part[2:-1]) in macros:
                line += macros[name]
            else:
                raise ConfigError(f"the sweep's command has {part}: choose one of {', '.join(macros)}")
        return line


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file. Raises ConfigError naming the file and what is wrong with it."""
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"no sweep file at {path}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("parameters"), dict) or not raw.get("method"):
        raise ConfigError(f"{path} is no sweep: it needs method and parameters")
    for name, parameter in raw["parameters"].items():
        if not isinstance(parameter, dict) or "parameters" in parameter:
            raise ConfigError(f"{path}: parameter {name} needs value, values or a distribution; nested ones go by dots")
    metric = raw.get("metric") or {}
    return Sweep(
        name=str(raw.get("name") or Path(path).stem),
        method=raw["method"],
        parameters=dict(sorted(raw["parameters"].items())),
        metric=metric.get("name"),
        minimize=metric.get("goal", "minimize") == "minimize",
        command=list(raw.get("command") or _DEFAULT_COMMAND),
        program=raw.get("program"),
        run_cap=raw.get("run_cap"),
        early_terminate=raw.get("early_terminate"),
        raw=raw,
    )


def _macros(values: Values, program: str | None) -> dict[str, list[str]]:
    flags = [f"{name}={value}" for name, value in values.items()]
    macros = {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "args": [f"--{flag}" for flag in flags],
        "args_no_hyphens": flags,
        "args_no_equals": [part for name, value in values.items() for part in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in values.items()
            if value is not False
        ],
        "args_json": [json.dumps(values)],
    }
    return {**macros, "program": [program]} if program else macros
