"""What can go wrong by a user's doing. Each message is one line that names the option or file, and the remedy."""

from __future__ import annotations


class CmError(Exception):
    """Base of the errors that the command line prints without a traceback."""


class ConfigError(CmError, ValueError):
    """Options out of range, or that do not fit each other or the data."""


class DataError(CmError):
    """A missing or broken data folder or file."""


class CheckpointError(CmError):
    """A missing, damaged or unsuitable checkpoint."""


class NonFiniteLossError(CmError):
    """The loss became NaN or infinite."""


def brief(error: Exception) -> str:
    """The line for the user: an error of a loader's worker process arrives with that process's traceback before it."""
    return str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
