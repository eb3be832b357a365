"""Errors that a user can cause. Each message is one line that names the option or file, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Packages of the extra ``lcm``, which only text-to-image needs.
_LCM = ("diffusers", "transformers", "peft", "accelerate")


class CmError(Exception):
    """Base of the errors that the command line prints without a traceback."""


class ConfigError(CmError, ValueError):
    """Options that are out of range, or do not fit each other or the data."""


class DataError(CmError):
    """A missing or damaged data folder or file."""


class CheckpointError(CmError):
    """A missing, damaged or unsuitable checkpoint."""


class NonFiniteLossError(CmError):
    """The loss became NaN or infinite."""


def flat(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


def near(name: str, known: Iterable[str]) -> str:
    """``; perhaps ... is meant`` if a known name has a similar spelling, else ""."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f"; perhaps {found[0]} is meant" if found else ""


def what_yaml_says(error: Exception) -> str:
    """The place and the problem of a ``yaml.YAMLError``, on one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark and problem else flat(str(error))


def advice(error: ModuleNotFoundError) -> str | None:
    """The line for a user who lacks an extra; None if the missing module does not belong to one."""
    package = (error.name or "").partition(".")[0]
    return f"this needs {package}: pip install 'cm-lightning[lcm]'" if package in _LCM else None
