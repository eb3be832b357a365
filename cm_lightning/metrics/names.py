"""What follows from the name of a measure: whether higher is better, and how many digits are shown."""

from __future__ import annotations

import re

#: Measures for which higher is better; for all others except those of :data:`_NEITHER`, lower is better.
_RISING = ("accuracy", "clip_score", "coverage", "density", "inception_score", "precision", "psnr", "recall", "ssim")
#: Measures for which neither is better: good samples have about the value of real images.
_NEITHER = ("mid_grey", "black")
#: Measures that summarise the others, except those of a second classifier.
_LEADING = re.compile(r"(accuracy|clip_score|energy|fid|frechet_(?!mnist2)\w+)")


def is_rising(metric: str) -> bool:
    """Whether higher is better for a metric, by its name or the name in the log, ``val/accuracy_nfe1``."""
    return _is_one_of(metric, _RISING)


def has_direction(metric: str) -> bool:
    """Whether higher or lower is better for a metric, rather than the value of real images."""
    return not _is_one_of(metric, _NEITHER)


def is_leading(metric: str) -> bool:
    """Whether a metric belongs to a summary."""
    return _LEADING.fullmatch(metric) is not None


def decimals(metric: str, value: float) -> int:
    """The number of decimals of a value in a table: ``kid`` and ``energy`` of good samples are about 0.001."""
    if _is_one_of(metric, ("kid", "energy")):
        return 5 if abs(value) < 0.1 else 3
    return 3 if abs(value) < 2 else 1


def _is_one_of(metric: str, kinds: tuple[str, ...]) -> bool:
    """Whether the name begins with one of the kinds; the number of a second classifier may follow it."""
    return re.match(rf"({'|'.join(kinds)})\d*(_|$)", metric.rpartition("/")[2]) is not None
