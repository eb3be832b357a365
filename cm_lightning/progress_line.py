"""One line about the progress of a run: phase, bar, steps, loss, speed and time left, never wider than requested."""

from __future__ import annotations

import math
from dataclasses import dataclass

_GAP = "  "
_LONGEST_BAR, _SHORTEST_BAR = 30, 4
_SHORTEST_PHASE = 6


@dataclass(frozen=True)
class Facts:
    """What is known about a run at a moment.

    Args:
        phase: name of the part of the run, in a word or two.
        fraction: how much of the run is done, in [0, 1]; None if its length is not known.
        steps: ``612/1650``.
        loss: the last step's loss; None before there is one.
        speed: images per second; None before it is known.
        seconds: the time left; None if it is not known.
        ended: whether ``seconds`` is the time that the run took.
    """

    phase: str
    fraction: float | None
    steps: str
    loss: float | None = None
    speed: float | None = None
    seconds: float | None = None
    ended: bool = False


def bar_line(facts: Facts, width: int) -> str:
    """The facts with a bar between them, at most ``width`` columns wide.

    If there is little room, first the bar and then the phase become shorter, and finally the end of the line is left
    out.
    """
    parts = _numbers(facts)
    while len(parts) > 1 and len(_GAP.join(["p" * _SHORTEST_PHASE, *parts])) > width:
        parts.pop()
    room = width - len(_GAP.join(parts)) - len(_GAP)
    phase = _cut(facts.phase, room)
    free = room - len(phase) - len(_GAP)
    bar = [] if facts.fraction is None or free < _SHORTEST_BAR else [_bar(facts.fraction, min(free, _LONGEST_BAR))]
    return _GAP.join([phase, *bar, *parts])[:width]


def plain_line(facts: Facts) -> str:
    """The facts without a bar, for a log file."""
    share = "" if facts.fraction is None else f" ({facts.fraction:.0%})"
    steps, *rest = _numbers(facts)
    return _GAP.join([f"step {steps}{share}", facts.phase, *rest])


def evaluation_line(what: str, done: int, of: int, width: int) -> str:
    """The progress of an evaluation, at most ``width`` columns wide."""
    return bar_line(Facts(what, done / of if of else None, f"{done}/{of}" if of else f"{done}"), width)


def duration(seconds: float) -> str:
    """``4:12``, ``1:04:12``, ``3 d 4 h``; at most 11 columns."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h" if days < 10_000 else "years"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def speed(per_second: float) -> str:
    """Three digits, and k or M: at most 5 columns below a billion."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if per_second >= size:
            return f"{per_second / (1e3 if unit == 'k' else size):.3g}{unit}" if per_second < 1e9 else ">1G"
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.3g}" if per_second >= 0.01 else "<0.01"


def _numbers(facts: Facts) -> list[str]:
    parts = [facts.steps]
    if facts.loss is not None:
        parts.append(f"loss {facts.loss:.3g}")
    if facts.speed is not None:
        parts.append(f"{speed(facts.speed)} images/s")
    if facts.seconds is not None:
        parts.append(f"in {duration(facts.seconds)}" if facts.ended else f"{duration(facts.seconds)} left")
    return parts


def _bar(fraction: float, width: int) -> str:
    done = int(min(1.0, max(0.0, fraction)) * width)
    return "━" * done + "╌" * (width - done)


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"
