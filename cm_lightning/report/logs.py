"""What a run has logged: its metrics.csv, of which a killed process or an editor may have spoilt a line."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from cm_lightning.errors import DataError

#: Takes a line for the user on what was left out.
Note: TypeAlias = Callable[[str], object]

_SCORE = re.compile(r"(?P<stage>val|test)/(?P<metric>\w+)_nfe(?P<nfe>\d+)")

#: Metrics of which more is better; of all others less is.
_RISING = frozenset(
    {"accuracy", "clip_score", "coverage", "density", "inception_score", "precision", "psnr", "recall", "ssim"}
)


@dataclass(frozen=True)
class Score:
    """``value`` of ``metric`` at ``nfe`` evaluations, by a solver for a diffusion model.

    ``stage`` is ``val``, with the step of the training it was measured at, or ``test``, which knows no step.
    """

    stage: str
    step: int
    metric: str
    nfe: int
    value: float
    sampler: str = ""


@dataclass
class Log:
    """The (step, images seen, seconds of training) and the scores of a file, in the order they were logged."""

    progress: list[tuple[int, float, float]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    def add(self, row: dict[str, str], sampler: str) -> None:
        """Take a row of the file in, or nothing of it if a value that counts is not a number (ValueError)."""
        step = int(_number(row, "step")) if row["step"] else 0
        progress = None
        if row.get("train/seconds"):
            progress = (step, _number(row, "train/images"), _number(row, "train/seconds"))
        found = [(_SCORE.fullmatch(name), name) for name, text in row.items() if text]
        self.scores += [
            Score(match["stage"], step, match["metric"], int(match["nfe"]), _number(row, name), sampler)
            for match, name in found
            if match
        ]
        if progress is None:
            return
        while self.progress and self.progress[-1][0] >= step:  # a resumed run takes these steps again
            self.progress.pop()
        self.progress.append(progress)


def read_log(path: Path, sampler: str, note: Note) -> Log:
    """The log of a file, without the lines that cannot be read; a note says the first of those and their number.

    Args:
        path: of metrics.csv.
        sampler: of the scores, as in :class:`Score`.
        note: takes what was left out.

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
        raise DataError(f"{path} has no column step: it is not the file of a CSVLogger")
    log = Log()
    wrong = [f"line {reader.line_num}: {lack}" for row in reader if (lack := _lack(log, row, sampler))]
    if wrong:
        note(f"{path}, {wrong[0]}; {len(wrong)} line{'s are' if len(wrong) > 1 else ' is'} left out")
    return log


def _lack(log: Log, row: dict[str, str], sampler: str) -> str:
    """Add a row to the log, or tell why that cannot be."""
    try:
        log.add(_whole(row), sampler)
    except (ValueError, OverflowError) as error:
        return str(error)
    return ""


def _whole(row: dict[str, str]) -> dict[str, str]:
    """The row itself, if it has a value for each column."""
    if None in row or None in row.values():
        raise ValueError("it has not as many values as there are columns")
    return row


def _number(row: dict[str, str], name: str) -> float:
    try:
        return float(row.get(name, ""))
    except ValueError:
        raise ValueError(f"{row.get(name, '')!r} in {name} is not a number") from None


def is_rising(metric: str) -> bool:
    """Whether more is better of a metric by its own name or by the name it is logged under, ``val/accuracy_nfe1``."""
    name = metric.rpartition("/")[2]
    return any(name == rising or name.startswith(f"{rising}_") for rising in _RISING)
