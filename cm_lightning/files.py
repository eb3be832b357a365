"""Writing files: under a temporary name and then renamed, so that a killed process leaves no partial file."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cm_lightning.errors import ConfigError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, with its suffix, that is renamed to it if the block succeeds.

    Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_durable(file: IO[bytes]) -> None:
    """Wait until what was written to an open file is on the disk, so that it survives a crash of the machine."""
    file.flush()
    os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder, and in the folders below it.

    A file is left over if its process has ended; if that ran on another machine, which cannot be asked, after a day.
    """
    for path in folder.rglob(".*"):
        if (found := _TEMPORARY.fullmatch(path.name)) and path.is_file() and _is_left_over(path, found["rest"]):
            with suppress(OSError):  # another process was faster
                path.unlink()


#: ``.last.HOST.PID.ckpt``, and other names of temporary files; the name before the host may have dots too.
_TEMPORARY = re.compile(r"\.(?P<rest>[^.].*\.\d+)(\.\w+)?")
_DAY_S = 86400.0


def _is_left_over(path: Path, rest: str) -> bool:
    name, _, process = rest.rpartition(".")
    if name.endswith(f".{platform.node()}"):
        return int(process) == os.getpid() or not is_alive(int(process))
    return "." in name and time.time() - path.stat().st_mtime > _DAY_S


def is_alive(process: int) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def require_writable(path: Path, option: str) -> None:
    """Check, before anything slow begins, that ``replacing(path)`` will be able to write.

    Nothing is left behind: the folders above ``path`` need not exist and are not made.

    Args:
        path: the file to be written. For an option that names a folder, give a file in it.
        option: its option, such as "--output", for the message.

    Raises:
        ConfigError: ``path`` is a folder or a device, something above it is not a folder, or writing is not allowed.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{option} {path} is a folder: name a file")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{option} {path} is not a regular file: name another")
        above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise ConfigError(f"{option} {path}: {above} is not a folder: name another place")
        trial = above / _temporary_name(path)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written ({error.strerror}): name another place") from error


def _temporary_name(path: Path) -> str:
    return f".{path.stem}.{platform.node()}.{os.getpid()}{path.suffix}"
