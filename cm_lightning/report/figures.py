"""Curves of quality, and sheets of samples side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from cm_lightning.files import replacing
from cm_lightning.report.runs import Run


def curves(runs: Sequence[Run], metric: str, nfe: int, path: Path) -> bool:
    """Quality against images seen and against seconds of training, a colour a method; False if nothing was logged."""
    shown = [run for run in runs if run.curve(metric, nfe)]
    if not shown:
        return False
    names = list(dict.fromkeys(run.name for run in shown))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for run in shown:
        images, seconds, values = zip(*run.curve(metric, nfe), strict=True)
        colour = f"C{names.index(run.name)}"
        first = run is next(other for other in shown if other.name == run.name)
        for axis, x in zip(axes, (images, seconds), strict=True):
            axis.plot(x, values, "o-", color=colour, ms=4, lw=1.5, alpha=0.85, label=run.name if first else None)
    for axis, label in zip(axes, ("images seen", "seconds of training"), strict=True):
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        if metric != "accuracy":
            axis.set_yscale("log")
    axes[0].set_ylabel(f"{metric}, {nfe} evaluation{'s' * (nfe > 1)}")
    axes[1].legend(fontsize=8)
    save_figure(figure, path)
    return True


def sheets(runs: Sequence[Run], nfe: int, path: Path) -> bool:
    """The last sheet of each method's first run: the same noise in the same place. False if there is none."""
    first = {run.name: run for run in reversed(runs) if run.sheet(nfe)}
    shown = [(name, first[name]) for name in dict.fromkeys(run.name for run in runs) if name in first]
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


def save_figure(figure: plt.Figure, path: Path) -> None:  # type: ignore[name-defined]
    """Write a figure, and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
