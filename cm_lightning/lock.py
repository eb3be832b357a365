"""Locks of folders: one process at a time writes into a run or a sweep; the lock of a dead process does not count."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from cm_lightning.errors import ConfigError
from cm_lightning.files import is_alive

_FILE = ".lock"


@dataclass(frozen=True)
class Owner:
    """The process that holds, or held, a folder.

    Args:
        pid: number of the process.
        host: its machine.
        began: start of the process by the system's own clock; "" if the system does not provide it.
        since: the date at which it locked the folder.
        job: its SLURM job.
        command: the arguments of its command line.
        ended: whether it has released the folder.
    """

    pid: int
    host: str
    began: str = ""
    since: str = ""
    job: str | None = None
    command: str = ""
    ended: bool = False

    @classmethod
    def here(cls) -> Owner:
        """The current process."""
        pid, since, job = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"), os.environ.get("SLURM_JOB_ID")
        return cls(pid, platform.node(), _began(pid), since, job, shlex.join(sys.argv[1:]))

    @classmethod
    def of(cls, folder: Path) -> Owner | None:
        """The last process that held a folder; None if there was none or its note is damaged."""
        with suppress(OSError, TypeError, ValueError):
            return cls(**json.loads((folder / _FILE).read_text()))
        return None

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended, which cannot be known on another machine."""
        if self.ended or self.host != platform.node():
            return self.ended
        return not is_alive(self.pid) or (self.began != "" and self.began != _began(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Lock:
    """The lock of a folder, held from :meth:`take` to :meth:`release` or to the end of the process.

    The system's own lock is used if the file system supports it. A note beside it names the holder.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def take(self, folder: Path, what: str, remedy: str) -> None:
        """Lock a folder, which is made if it is missing.

        Args:
            folder: the folder.
            what: what runs in it, such as "another sweep".
            remedy: what to do instead of waiting.

        Raises:
            ConfigError: another process holds it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _FILE, "a+")  # noqa: SIM115
        owner = Owner.of(folder)
        if _is_held(file, owner):
            file.close()
            raise ConfigError(_refusal(folder, owner, what, remedy))
        self._file = file
        self._write(Owner.here())

    def release(self) -> None:
        """Release the folder."""
        if self._file is not None:
            with suppress(OSError):  # the folder may be gone
                self._write(Owner(**{**asdict(Owner.here()), "ended": True}))
            self._file.close()
            self._file = None

    def _write(self, owner: Owner) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(asdict(owner)) + "\n")
        self._file.flush()


def require_unlocked(folder: Path, what: str, remedy: str) -> None:
    """Raise ConfigError if a process holds a folder, without locking it."""
    if (folder / _FILE).is_file():
        with open(folder / _FILE) as file:
            owner = Owner.of(folder)
            if _is_held(file, owner):
                raise ConfigError(_refusal(folder, owner, what, remedy))


@contextmanager
def alone(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Hold the lock of a folder within the block; see :meth:`Lock.take`."""
    lock = Lock()
    lock.take(folder, what, remedy)
    try:
        yield
    finally:
        lock.release()


def _is_held(file: IO[str], owner: Owner | None) -> bool:
    """Whether another process holds the lock; if not, this process now holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return owner is None or not owner.is_dead  # children of a dead process keep its lock for some seconds
    except OSError:  # some network file systems do not have locks
        return owner is not None and not owner.is_dead
    return False


def _refusal(folder: Path, owner: Owner | None, what: str, remedy: str) -> str:
    by = f"; it is held by {owner}" if owner else ""
    elsewhere = owner is not None and owner.host != platform.node()
    stale = f": if that has ended, remove {folder / _FILE}" if elsewhere else ""
    return f"{what} runs in {folder}: wait until it ends, or {remedy}{by}{stale}"


def _began(pid: int) -> str:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
