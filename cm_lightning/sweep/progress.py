"""How far a sweep is."""

from __future__ import annotations

from collections.abc import Sequence

from cm_lightning.sweep.search import Search
from cm_lightning.sweep.trials import Trial


def progress(search: Search, trials: Sequence[Trial], count: int | None, again: int) -> str:
    """What follows a trial's number, such as " of 6 (about 12 min left)"; before the trial has been proposed.

    Args:
        search: proposes trials.
        trials: those that there are, of which ``again`` are still to be run.
        count: the most trials that there may be.
        again: how many of the trials are run again.
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
    """Seconds in a unit that suits them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _all(search: Search, trials: Sequence[Trial]) -> int | None:
    left = search.left(trials)
    return None if left is None else len(trials) + left
