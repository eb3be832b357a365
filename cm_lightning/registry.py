"""The public names and their modules, as listed in ``__init__.pyi``."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from cm_lightning.errors import ConfigError, advice

_LINES = re.findall(
    r"^from (\.\S+) import (\w+) as \2(?:  # (\w+))?$",
    Path(__file__).with_name("__init__.pyi").read_text(),
    re.MULTILINE,
)
#: The module of each name.
HOMES: dict[str, str] = {name: f"cm_lightning{home}" for home, name, _ in _LINES}
#: Names whose modules need an extra, and seconds to import.
SLOW = frozenset(name for _, name, extra in _LINES if extra)


def find(name: str) -> Any:
    """Import the object of a public name.

    Raises:
        AttributeError: the name is unknown.
        ConfigError: it needs an extra that is not installed.
    """
    if name not in HOMES:
        raise AttributeError(f"module 'cm_lightning' has no attribute {name!r}")
    try:
        return getattr(import_module(HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (line := advice(error)) is None:
            raise
        raise ConfigError(f"{name}: {line}") from error


def make_known(text: str | None = None) -> None:
    """Import classes, so that jsonargparse, which searches the subclasses of a type, finds them by their short names.

    Args:
        text: its words are looked up; with one slow name, all slow names, its alternatives, are imported too unless the
            extra is missing. If None, all names but the slow ones are imported.
    """
    names = HOMES.keys() - SLOW if text is None else HOMES.keys() & set(re.findall(r"\w+", text))
    for name in names | SLOW if names & SLOW else names:
        with suppress(ConfigError):
            find(name)
