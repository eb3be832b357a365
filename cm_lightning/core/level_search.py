"""Search for the noise levels of a few steps, one after the other (CM, Section 3: a greedy ternary search)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cm_lightning.domains import COUNT, POSITIVE, check_ascending
from cm_lightning.errors import ConfigError


@dataclass(frozen=True)
class Curve:
    """The scores of one level, given the levels above it.

    Attributes:
        above: the levels above it, descending.
        points: (level, score), ascending in the level.
    """

    above: tuple[float, ...]
    points: tuple[tuple[float, float], ...]

    @property
    def best(self) -> tuple[float, float]:
        """The level with the lowest score, and that score."""
        return min(self.points, key=lambda point: point[1])

    @property
    def levels(self) -> list[float]:
        """The levels above and the best level."""
        return [*self.above, self.best[0]]


def search_level(
    score: Callable[[float], float], low: float, high: float, points: int = 7, tolerance: float = 0.1
) -> tuple[tuple[float, float], ...]:
    """Search for the level with the lowest score: at evenly spaced logarithms, then by thirds around the best of them.

    The score must fall and then rise only there: elsewhere it may have other minima.

    Args:
        score: the score of a level; it is computed once for each.
        low: lower bound.
        high: upper bound.
        points: number of the evenly spaced levels, which lie inside the bounds.
        tolerance: width of the last interval, in ln sigma.

    Returns:
        All levels and their scores, ascending in the level.

    Raises:
        ConfigError: a number is out of range, or a score is not finite.
    """
    POSITIVE.check(low=low, high=high, tolerance=tolerance)
    COUNT.check(points=points)
    check_ascending(low=low, high=high)
    found: dict[float, float] = {}

    def at(log: float) -> float:
        if log not in found:
            found[log] = score(math.exp(log))
            if not math.isfinite(found[log]):
                raise ConfigError(f"the score at level {math.exp(log):.4g} is {found[log]}: take more samples")
        return found[log]

    gap = (math.log(high) - math.log(low)) / (points + 1)
    best = min((math.log(low) + gap * (i + 1) for i in range(points)), key=at)
    left, right = best - gap, best + gap
    while right - left > tolerance:
        third = (right - left) / 3
        if at(left + third) < at(right - third):
            right -= third
        else:
            left += third
    return tuple((math.exp(log), value) for log, value in sorted(found.items()))


def search_levels(
    score: Callable[[Sequence[float]], float],
    n: int,
    low: float,
    high: float,
    points: int = 7,
    tolerance: float = 0.1,
) -> list[Curve]:
    """Search for n levels one by one, each below those that were found before, which stay fixed.

    Args:
        score: the score of one or more descending levels; the lower, the better.
        n: number of levels.
        low: lower bound of all.
        high: upper bound of the first.
        points: see :func:`search_level`.
        tolerance: see :func:`search_level`.

    Returns:
        The curve of each level; fewer than n if the last one leaves too little room below it.
    """
    COUNT.check(n=n)
    POSITIVE.check(low=low, high=high, tolerance=tolerance)
    curves: list[Curve] = []
    above: tuple[float, ...] = ()
    while len(curves) < n and math.log(high / low) > tolerance:
        fixed = above
        found = search_level(lambda sigma, fixed=fixed: score([*fixed, sigma]), low, high, points, tolerance)  # type: ignore[misc]
        curves.append(Curve(fixed, found))
        above, high = tuple(curves[-1].levels), curves[-1].best[0]
    return curves
