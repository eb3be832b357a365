"""The command of a trial, as ``wandb agent`` builds it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from cm_lightning.errors import ConfigError

Values = dict[str, Any]

_DEFAULT = ["${env}", "${interpreter}", "${program}", "${args}"]
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
_EXAMPLE = 'write a list: ["${env}", "${interpreter}", -m, cm_lightning, fit, "${args}"]'


def check_command(command: object, program: str | None) -> list[str]:
    """Check a sweep file's command, and return its parts.

    Raises:
        ConfigError: it is not a list of text, has a macro that W&B does not have, or leaves the parameters out.
    """
    parts = _DEFAULT if command is None or command == [] else command
    if not isinstance(parts, list):
        raise ConfigError(f"command must be a list, got {parts!r}: {_EXAMPLE}")
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise ConfigError(f"command has {part!r}, which is not text: put it in quotes, as in {_EXAMPLE}")
    macros = _macros({}, program)
    for part in map(str, parts):
        _check_macro(part, macros)
    if not any(str(part).startswith("${args") for part in parts):
        raise ConfigError("command has no ${args}, so the parameters would not reach the program: add it")
    return [str(part) for part in parts]


def command_line(command: Sequence[str], program: str | None, values: Values) -> list[str]:
    """The command of a trial with these values, from checked parts."""
    macros = _macros(values, program)
    line: list[str] = []
    for template in command:
        part = _ENVIRONMENT.sub(lambda match: os.environ.get(match[1], match[1]), template)
        line += macros[part[2:-1]] if _is_macro(part) else [part]
    return line


def _is_macro(part: str) -> bool:
    return part.startswith("${") and part.endswith("}")


def _check_macro(template: str, macros: dict[str, list[str]]) -> None:
    part = _ENVIRONMENT.sub("", template)
    if part == "${program}" and "program" not in macros:
        raise ConfigError("command has ${program}: give program: FILE, or a command without it")
    if _is_macro(part) and part[2:-1] not in macros:
        raise ConfigError(f"command has {part}: choose one of {', '.join(macros)}")


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
