"""One sweep at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cm_lightning.errors import ConfigError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made. The system releases it when the process ends, however it ends.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another sweep runs in {folder}: wait for its end, or give another --output") from error
        except OSError:  # some network file systems have no locks
            pass
        yield
