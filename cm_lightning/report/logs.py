"""The log of a run: its metrics.csv, in which a killed process or an editor may have spoilt a line."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from cm_lightning.errors import DataError

#: Takes a line for the user about what was left out.
Note: TypeAlias = Callable[[str], object]

_SCORE = re.compile(r"(?P<stage>val|test)/(?P<metric>\w+)_nfe(?P<nfe>\d+)")
_FLOOR = re.compile(r"(?:val|test)/(?P<metric>\w+)_floor")
#: What tells of the training itself, as logged: the loss, and the mean square of the difference that it makes small.
LOSSES = ("train/loss", "train/raw")


@dataclass(frozen=True)
class Score:
    """The ``value`` of ``metric`` at ``nfe`` evaluations, with the solver for a diffusion model.

    ``stage`` is ``val``, with the training step of the measurement, or ``test``, without a step.
    """

    stage: str
    step: int
    metric: str
    nfe: int
    value: float
    sampler: str = ""


@dataclass
class Log:
    """The contents of a file in the order they were logged.

    ``progress`` is (step, images seen, seconds of training), ``losses`` (step, value) by the names in :data:`LOSSES`,
    and ``floor`` the last scores of real images by metric.
    """

    progress: list[tuple[int, float, float]] = field(default_factory=list)
    losses: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: {name: [] for name in LOSSES})
    scores: list[Score] = field(default_factory=list)
    floor: dict[str, float] = field(default_factory=dict)

    def add(self, row: dict[str, str], sampler: str) -> None:
        """Add a row of the file, or raise ValueError, and add nothing, if a value in use is not a number."""
        step = int(_number(row, "step")) if row["step"] else 0
        progress = None
        if row.get("train/seconds"):
            progress = (step, _number(row, "train/images"), _number(row, "train/seconds"))
        floor = {
            m["metric"]: _number(row, name) for name, text in row.items() if text and (m := _FLOOR.fullmatch(name))
        }
        losses = {name: _number(row, name) for name in LOSSES if row.get(name)}
        found = [(_SCORE.fullmatch(name), name) for name, text in row.items() if text]
        self.scores += [
            Score(match["stage"], step, match["metric"], int(match["nfe"]), _number(row, name), sampler)
            for match, name in found
            if match
        ]
        self.floor |= floor
        if progress is not None:
            _append(self.progress, progress)
        for name, value in losses.items():
            _append(self.losses[name], (step, value))


_Entry = TypeVar("_Entry", bound=tuple[Any, ...])


def _append(entries: list[_Entry], entry: _Entry) -> None:
    """Append an entry, which begins with its step; a resumed run repeats the last ones."""
    while entries and entries[-1][0] >= entry[0]:
        entries.pop()
    entries.append(entry)


def read_log(path: Path, sampler: str, note: Note) -> Log:
    """Read a log without the lines that cannot be read; a note gives the first of these and their number.

    Args:
        path: path of metrics.csv.
        sampler: sampler of the scores, as in :class:`Score`.
        note: takes the note on what was left out.

    Raises:
        DataError: the file is missing, empty, or not a log.
    """
    try:
        *lines, rest = path.read_text().split("\n")
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: the run has logged nothing yet") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text") from error
    if not lines:
        raise DataError(f"{path} {'is empty' if not rest else 'holds no whole line'}: the run has logged nothing yet")
    if rest:
        note(f"{path}: its last line is cut short and is left out")
    reader = csv.DictReader(line.replace("\0", "?") for line in lines)
    try:
        return _log(path, reader, sampler, note)
    except csv.Error as error:
        raise DataError(f"{path} is not a table: {error}") from error


def _log(path: Path, reader: csv.DictReader[str], sampler: str, note: Note) -> Log:
    if "step" not in (reader.fieldnames or ()):
        raise DataError(f"{path} lacks the column step: a CSVLogger did not write it")
    log = Log()
    wrong = [f"line {reader.line_num}: {lack}" for row in reader if (lack := _lack(log, row, sampler))]
    if wrong:
        note(f"{path}, {wrong[0]}; {len(wrong)} line{'s are' if len(wrong) > 1 else ' is'} left out")
    return log


def _lack(log: Log, row: dict[str, str], sampler: str) -> str:
    """Add a row to the log, or return why that is impossible."""
    try:
        log.add(_whole(row), sampler)
    except (ValueError, OverflowError) as error:
        return str(error)
    return ""


def _whole(row: dict[str, str]) -> dict[str, str]:
    """Return the row if it has a value for each column."""
    if None in row or None in row.values():
        raise ValueError("it does not have as many values as there are columns")
    return row


def _number(row: dict[str, str], name: str) -> float:
    try:
        return float(row.get(name, ""))
    except ValueError:
        raise ValueError(f"{row.get(name, '')!r} in {name} is not a number") from None
