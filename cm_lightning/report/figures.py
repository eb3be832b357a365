"""Curves of quality, and sheets of samples side by side."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from cm_lightning.files import replacing
from cm_lightning.metrics.names import has_direction, is_rising
from cm_lightning.report.runs import Run


def curves(runs: Sequence[Run], metric: str, nfe: int, path: Path) -> bool:
    """Plot quality against images and seconds of training, one colour per method; False if nothing was logged."""
    shown = [run for run in runs if run.curve(metric, nfe)]
    if not shown:
        return False
    names = list(dict.fromkeys(run.label for run in shown))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for run in shown:
        images, seconds, values = zip(*run.curve(metric, nfe), strict=True)
        colour = f"C{names.index(run.label)}"
        first = run is next(other for other in shown if other.label == run.label)
        for axis, x in zip(axes, (images, seconds), strict=True):
            axis.plot(x, values, "o-", color=colour, ms=4, lw=1.5, alpha=0.85, label=run.label if first else None)
    for axis, label in zip(axes, ("images seen", "seconds of training"), strict=True):
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        positive = all(value > 0 or isnan(value) for run in shown for *_, value in run.curve(metric, nfe))
        if has_direction(metric) and not is_rising(metric) and positive:
            axis.set_yscale("log")
        if not has_direction(metric) and (real := [run.floor[metric] for run in shown if metric in run.floor]):
            axis.axhline(real[0], color="k", ls=":", lw=1, label="real images")
    axes[0].set_ylabel(f"{metric}, {nfe} evaluation{'s' * (nfe > 1)}")
    axes[1].legend(fontsize=8)
    save_figure(figure, path)
    return True


def sheets(runs: Sequence[Run], nfe: int, path: Path) -> bool:
    """Show the last sheet of each method's first run, with the same noise in the same place; False without sheets."""
    first = {run.label: run for run in reversed(runs) if _readable(run.sheet(nfe))}
    shown = [(name, first[name]) for name in dict.fromkeys(run.label for run in runs) if name in first]
    if not shown:
        return False
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 4.5 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, run) in zip(axes.flat, shown, strict=False):
        axis.imshow(plt.imread(str(run.sheet(nfe))))
        axis.set_title(f"{name}, seed {run.seed}", fontsize=10)
    save_figure(figure, path)
    return True


def _readable(path: Path | None) -> bool:
    """Whether there is a complete picture: a killed process or a full disk may have left a part of one."""
    if path is None:
        return False
    try:
        plt.imread(str(path))
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def save_figure(figure: plt.Figure, path: Path) -> None:  # type: ignore[name-defined]
    """Write a figure, and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
