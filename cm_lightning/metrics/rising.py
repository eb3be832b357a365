"""Which way quality lies: the one list of the metrics of which more is better."""

from __future__ import annotations

#: Of all other metrics less is better.
RISING = frozenset(
    {"accuracy", "clip_score", "coverage", "density", "inception_score", "precision", "psnr", "recall", "ssim"}
)


def is_rising(metric: str) -> bool:
    """Whether more is better of a metric by its own name or by the name it is logged under, ``val/accuracy_nfe1``."""
    name = metric.rpartition("/")[2]
    return any(name == rising or name.startswith(f"{rising}_") for rising in RISING)
