"""The cache of files that can be computed again. Their loss, or a failure to write them, never ends a program."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn
from safetensors import SafetensorError

from cm_lightning.errors import flat
from cm_lightning.files import replacing


def cache_folder(folder: str | None = None) -> Path:
    """The folder for reproducible files: ``folder``, or ``cm_lightning`` in ``$XDG_CACHE_HOME`` (``~/.cache``).

    For a user without a home directory it is in the folder for temporary files.
    """
    if folder:
        return Path(folder)
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "cm_lightning"
    try:
        return Path.home() / ".cache/cm_lightning"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"cm_lightning-{os.getuid()}"


def is_kept(path: Path) -> bool:
    """Whether the cache has a file; false if the folder cannot be read."""
    try:
        return path.is_file()
    except OSError:
        return False


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file into the cache; a failure is a warning with the remedy.

    Args:
        path: path of the file.
        write: called with a temporary path beside it, which is then renamed.
    """
    try:
        with replacing(path) as temporary:
            write(temporary)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or flat(str(error))
        rank_zero_warn(
            f"{path} cannot be written ({reason}), so it will be computed again: free space there, or set the option "
            "cache, or XDG_CACHE_HOME, to a folder that can be written"
        )
