"""Reports of a sweep on its trials: its progress, and why a trial failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cm_lightning.sweep.search import Search
from cm_lightning.sweep.trials import Trial

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_RANK = re.compile(r"^\[(?:rank|default)\d+\]: ?")  # torchrun and torch put this before each line
_TRACEBACK = "Traceback (most recent call last):"
_LONGEST = 500


def progress(search: Search, trials: Sequence[Trial], count: int | None, again: int) -> str:
    """The text after a trial's number, such as " of 6 (about 12 min left)", before the trial has been proposed.

    Args:
        search: proposes trials.
        trials: the existing trials, including the ``again`` that are still to be run.
        count: the largest number of trials.
        again: number of trials that are run again.
    """
    ends = [end for end in (count, _all(search, trials)) if end is not None]
    if not ends:
        return ""
    total = max(min(ends), len(trials))
    seconds = [trial.seconds for trial in trials if trial.state in ("finished", "stopped", "failed")]
    if not seconds:
        return f" of {total}"
    left = (total - len(trials) + again) * sum(seconds) / len(seconds)
    return f" of {total} (about {duration(left)} left)"


def duration(seconds: float) -> str:
    """Seconds, in a suitable unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _all(search: Search, trials: Sequence[Trial]) -> int | None:
    left = search.left(trials)
    return None if left is None else len(trials) + left


def failure_in(log: Path) -> str:
    """The line of a log that explains a failure: an error line, else the end of a traceback, else the last line."""
    lines = _lines(log.read_text(errors="replace"))
    found = _said(lines) or _raised(lines) or (lines[-1].strip() if lines else "there was no output")
    return found[:_LONGEST]


def _lines(text: str) -> list[str]:
    """The lines as a terminal would show them, without colours and without overwritten progress."""
    shown = (line.rstrip("\r").rpartition("\r")[2] for line in _ESCAPES.sub("", text).split("\n"))
    return [line for line in (_RANK.sub("", line).rstrip() for line in shown) if line.strip()]


def _said(lines: list[str]) -> str | None:
    """The last line that begins with ``error: ``, else one that begins with the name of a program."""
    for pattern in (r"^error: (?!another rank failed)", r"^(?:rank \d+: )?error: ", r"^\S.*: error: "):
        if found := [line for line in lines if re.search(pattern, line)]:
            return found[-1].strip()
    return None


def _raised(lines: list[str]) -> str | None:
    """The line of the error below the last traceback's frames."""
    starts = [index for index, line in enumerate(lines) if line.endswith(_TRACEBACK)]
    below = lines[starts[-1] + 1 :] if starts else []
    return next((line for line in below if not line.startswith(" ")), None)
