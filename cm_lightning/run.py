"""The directory of a run, which holds its configuration, checkpoints, metrics and samples.

``runs/NAME/version_3`` is one version of the run ``runs/NAME``: each start of training makes a new one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info

from cm_lightning.errors import CheckpointError
from cm_lightning.files import replacing

#: Environment variable with the path of a file to which a run writes its directory, for the program that started it.
RUN_FILE = "CM_LIGHTNING_RUN_FILE"
#: The file that marks a version that was trained to its end.
FINISHED = "finished.json"


def version_name(version: int | str) -> str:
    """The name of a version's folder, as Lightning's loggers write it."""
    return version if isinstance(version, str) else f"version_{version}"


def version_number(path: Path) -> int | None:
    """N of ``version_N``; None for a version with another name."""
    found = re.fullmatch(r"version_(\d+)", path.name)
    return int(found[1]) if found else None


def claim_version(roots: Sequence[Path]) -> int:
    """Make ``version_N`` in the first of ``roots``, with N free in all, safely among several processes."""
    while True:
        numbers = [version_number(path) for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()]
        number = max((n for n in numbers if n is not None), default=-1) + 1
        try:
            (roots[0] / version_name(number)).mkdir(parents=True)
        except FileExistsError:
            continue  # another run was faster
        return number


def holds_a_run(directory: Path) -> bool:
    """Whether training has written into a directory."""
    return any((directory / name).exists() for name in ("config.yaml", "metrics.csv", "checkpoints"))


def find_checkpoint(path: str | Path) -> Path:
    """Find the checkpoint that a path refers to.

    Args:
        path: a file refers to itself; a version's folder to its last checkpoint; a run's folder to the last
            checkpoint of its newest finished version, or of its newest version if none is finished. If a killed process
            has left the file incomplete, the newest complete one of that version takes its place, and a line is
            printed.

    Raises:
        CheckpointError: there is none, or versions with names of their own leave the choice open.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}{_nearest(path)}")
    return _last_of(path) or _last_of_run(path)


def last_checkpoint(run: Path) -> Path:
    """Find the last checkpoint of the newest version of a run, finished or not, to resume from.

    Raises:
        CheckpointError: there is none, or versions with names of their own leave the choice open.
    """
    return _last_of(run) or _of_newest(run, _with_checkpoints(run))


def find_export(path: str) -> str:
    """The ``export`` of a version or run, found as in :func:`find_checkpoint`; for other paths, the path itself.

    Raises:
        CheckpointError: versions with names of their own leave the choice open.
    """
    run = Path(path)
    if (run / "export").is_dir():
        return str(run / "export")
    versions = [version for version in run.iterdir() if (version / "export").is_dir()] if run.is_dir() else []
    finished = [version for version in versions if (version / FINISHED).is_file()]
    return str(_newest(run, finished or versions) / "export") if versions else path


def _last_of_run(run: Path) -> Path:
    versions = _with_checkpoints(run)
    finished = [version for version in versions if (version / FINISHED).is_file()]
    return _of_newest(run, finished or versions)


def _of_newest(run: Path, versions: list[Path]) -> Path:
    """The last checkpoint of the newest version; if it is not complete, that of the previous version."""
    newest = _last_of(_newest(run, versions))
    assert newest is not None
    if zipfile.is_zipfile(newest):
        return newest
    numbered = {number: version for version in versions if (number := version_number(version)) is not None}
    older = (_last_of(numbered[number]) for number in sorted(numbered, reverse=True))
    return _first_whole([newest, *filter(None, older)])


def _with_checkpoints(run: Path) -> list[Path]:
    versions = [path for path in run.iterdir() if path.is_dir()] if run.is_dir() else []
    return [version for version in versions if _last_of(version)]


def _newest(run: Path, versions: list[Path]) -> Path:
    """The newest version by number, because file times are unreliable on a disk that several machines share."""
    numbered = {number: path for path in versions if (number := version_number(path)) is not None}
    if numbered:
        return numbered[max(numbered)]
    if len(versions) == 1:
        return versions[0]
    if versions:
        names = ", ".join(sorted(path.name for path in versions))
        raise CheckpointError(f"{run} has several versions, {names}: name one, {run / 'VERSION'}")
    raise CheckpointError(f"no checkpoint below {run}{_stopped_early(run)}")


def _stopped_early(run: Path) -> str:
    stopped = sorted(path.name for path in run.iterdir() if holds_a_run(path)) if run.is_dir() else []
    return f": {', '.join(stopped)} ended before the first one was written" if stopped else ""


def _last_of(version: Path) -> Path | None:
    """``last.ckpt`` of a version (or of its folder ``checkpoints``), else the checkpoint of the highest step."""
    for folder in (version / "checkpoints", version):
        files = sorted((file for file in folder.glob("*.ckpt") if file.name[0] != "."), key=_order, reverse=True)
        if files and (folder.name == "checkpoints" or files[0].name == "last.ckpt"):
            return _first_whole(files)
    return None


def _first_whole(files: Sequence[Path]) -> Path:
    """The first file that is complete; if none is, the first file, whose reader reports what is wrong with it."""
    found = next((file for file in files if zipfile.is_zipfile(file)), files[0])
    if found != files[0]:
        say_once(f"{files[0]} is not complete: {found} takes its place")
    return found


@cache
def say_once(line: str) -> None:
    """Print a line on the first rank, the first time that it is given."""
    rank_zero_info(line)


def _order(path: Path) -> tuple[bool, int, str]:
    """A sort key: ``last.ckpt`` comes after the others, and they by their steps."""
    return path.name == "last.ckpt", _step(path), path.name


def _step(path: Path) -> int:
    found = re.search(r"step=(\d+)", path.name)
    return int(found[1]) if found else -1


def _nearest(path: Path) -> str:
    """A hint at what the user may have meant: the folders beside the missing one."""
    if path.suffix or not path.parent.is_dir() or path.parent == Path():
        return ""
    names = sorted(other.name for other in path.parent.iterdir() if other.is_dir())
    near = difflib.get_close_matches(path.name, names, n=1) or names[-8:]
    return f"; beside it: {', '.join(near)}" if near else ""


@dataclass(frozen=True)
class RunNote:
    """The directory of a run and whether the run was finished."""

    directory: str | None = None
    finished: bool = False

    def leave(self) -> None:
        """Write the note if it was requested."""
        if path := os.environ.get(RUN_FILE):
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> RunNote:
        """Read the note; an empty one if there is none."""
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()
