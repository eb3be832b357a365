"""The directory of a run: where its configuration, checkpoints, metrics and samples lie together.

``runs/NAME/version_3`` is one version of the run ``runs/NAME``: each start of a training makes a new one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cm_lightning.errors import CheckpointError
from cm_lightning.files import replacing

#: Environment variable that names a file in which a run says where it lies: who starts a run learns it so.
RUN_FILE = "CM_LIGHTNING_RUN_FILE"
#: The mark of a version whose training came to its end.
FINISHED = "finished.json"


def version_name(version: int | str) -> str:
    """The folder's name of a version, as Lightning's loggers write it."""
    return version if isinstance(version, str) else f"version_{version}"


def version_number(path: Path) -> int | None:
    """N of ``version_N``; None for a version that was given a name of its own."""
    found = re.fullmatch(r"version_(\d+)", path.name)
    return int(found[1]) if found else None


def claim_version(roots: Sequence[Path]) -> int:
    """Make ``version_N`` in the first of ``roots``, where N is free in all; no other process can take the same."""
    while True:
        numbers = [version_number(path) for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()]
        number = max((n for n in numbers if n is not None), default=-1) + 1
        try:
            (roots[0] / version_name(number)).mkdir(parents=True)
        except FileExistsError:
            continue  # another run was quicker
        return number


def holds_a_run(directory: Path) -> bool:
    """Whether a training has written into a directory."""
    return any((directory / name).exists() for name in ("config.yaml", "metrics.csv", "checkpoints"))


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path stands for.

    Args:
        path: a file stands for itself; a version's folder for its last checkpoint; a run's folder for the last
            checkpoint of its newest finished version, or of its newest one if none is finished.

    Raises:
        CheckpointError: there is none; or the run's versions have names of their own, and which one is not said.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}{_nearest(path)}")
    return _last_of(path) or _last_of_run(path)


def last_checkpoint(run: Path) -> Path:
    """The last checkpoint of the newest version of a run, whether or not it is finished: where to go on.

    Raises:
        CheckpointError: there is none; or the run's versions have names of their own, and which one is not said.
    """
    found = _last_of(run) or _last_of(_newest(run, _with_checkpoints(run)))
    assert found is not None
    return found


def find_export(path: str) -> str:
    """The ``export`` of a version or a run that a path names, as in :func:`find_checkpoint`; else the path itself.

    Raises:
        CheckpointError: the run's versions have names of their own, and which one is not said.
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
    found = _last_of(_newest(run, finished or versions))
    assert found is not None
    return found


def _with_checkpoints(run: Path) -> list[Path]:
    versions = [path for path in run.iterdir() if path.is_dir()] if run.is_dir() else []
    return [version for version in versions if _last_of(version)]


def _newest(run: Path, versions: list[Path]) -> Path:
    """By number: the time of a file says little on a disc that several machines share."""
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
    """``last.ckpt`` of a version (or of its folder ``checkpoints``); without SaveLast, the one of the highest step."""
    for folder in (version / "checkpoints", version):
        files = sorted(folder.glob("*.ckpt"), key=_step)
        if (folder / "last.ckpt").is_file():
            return folder / "last.ckpt"
        if files and (folder.name == "checkpoints"):
            return files[-1]
    return None


def _step(path: Path) -> int:
    found = re.search(r"step=(\d+)", path.name)
    return int(found[1]) if found else -1


def _nearest(path: Path) -> str:
    """What the user may have meant: the folders beside the one that is missing."""
    if path.suffix or not path.parent.is_dir() or path.parent == Path():
        return ""
    names = sorted(other.name for other in path.parent.iterdir() if other.is_dir())
    near = difflib.get_close_matches(path.name, names, n=1) or names[-8:]
    return f"; beside it: {', '.join(near)}" if near else ""


@dataclass(frozen=True)
class RunNote:
    """Where a run lies, and whether it came to its end; its exit status does not tell, as it is 0 after a SIGTERM."""

    directory: str | None = None
    finished: bool = False

    def leave(self) -> None:
        """Write the note for whoever asked for it."""
        if path := os.environ.get(RUN_FILE):
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> RunNote:
        """The note, or an empty one."""
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()
