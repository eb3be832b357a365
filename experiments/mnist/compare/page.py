"""The tables and the figure of this page, from the logs and checkpoints of its runs.

python experiments/mnist/compare/page.py runs/mnist-* [--output experiments/mnist/compare/samples.png]

The rows are the methods, the best in one step by the second classifier first. The tables are in Markdown; each cell has
the values of all seeds. The figure shows the ten classes in one step and in four, from the same noise for all methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import inf
from pathlib import Path
from statistics import mean

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cm_lightning import load_module
from cm_lightning.images import sheet
from cm_lightning.report.runs import Run, read_runs
from cm_lightning.report.tables import Table

STEPS = (1, 2, 4, 8)
DRAWN = (1, 4)
#: After which step of a run a staged method has the student for a number of sampling steps.
STAGES = {"progressive": {8: 100, 4: 200, 2: 300, 1: 400}, "lightning": {8: 29, 4: 58, 2: 87, 1: 145}}
#: What a table shows beside the distance and the accuracy of the second classifier.
OTHERS = ("frechet_mnist", "accuracy", "kid_mnist2", "precision_mnist2", "recall_mnist2", "mid_grey", "black")
SHARES = ("accuracy", "precision", "recall", "mid_grey", "black")


def method(run: Run) -> str:
    """The name of the recipe; CM's own CT is distinguished from Exercise 1 by the name of its run."""
    return run.name.removeprefix("mnist-").removeprefix("cm-").replace("-", "_")


def value(run: Run, metric: str, steps: int) -> float | None:
    """What a run's samples in a number of steps measured, after the stage that trained for it if there are stages."""
    at = STAGES.get(method(run), {}).get(steps)
    found = [
        score.value
        for score in run.scores
        if (score.metric, score.nfe) == (metric, steps) and (at is None or score.step + 1 == at)
    ]
    return found[-1] if found else None


def shown(metric: str, values: Sequence[float | None]) -> str:
    """The values of all seeds: shares in three digits without the zero, distances in one."""
    known = [number for number in values if number is not None]
    if metric.startswith(SHARES):
        return ", ".join(f"{number:.3f}".removeprefix("0") for number in known)
    return ", ".join(f"{number:.1f}" for number in known)


def pair(runs: Sequence[Run], first: str, second: str, steps: int) -> str:
    """Two measures of all seeds with a stroke between them; empty where nothing was measured."""
    cells = [shown(metric, [value(run, metric, steps) for run in runs]) for metric in (first, second)]
    return " / ".join(cells) if all(cells) else ""


def main_table(methods: dict[str, list[Run]]) -> Table:
    """Distance and accuracy by the second classifier at each number of steps, with the cost of the first seed's run."""
    heads = ["method", "learns from", "images", "seconds", *(f"{steps} step{'s' * (steps > 1)}" for steps in STEPS)]
    rows = []
    for name, runs in methods.items():
        source = runs[0].origin.removeprefix("mnist-").partition("/")[0] or "data"
        cells = [pair(runs, "frechet_mnist2", "accuracy2", steps) for steps in STEPS]
        rows.append([name, source, f"{runs[0].images:,.0f}", f"{runs[0].seconds:.0f}", *cells])
    return Table("frechet_mnist2 / accuracy2", heads, rows)


def other_table(methods: dict[str, list[Run]], steps: int) -> Table:
    """The other measures at one number of steps."""
    rows = [
        [name, *(shown(metric, [value(run, metric, steps) for run in runs]) for metric in OTHERS)]
        for name, runs in methods.items()
    ]
    return Table(f"{steps} step{'s' * (steps > 1)}", ["method", *OTHERS], rows)


def digits(run: Run, steps: int) -> Tensor | None:
    """Images (10, 1, 28, 28) of the ten classes from fixed noise; None where no student of the run has these steps."""
    if steps > 1 and (method(run) in STAGES or value(run, "accuracy", steps) is None):
        return None
    module = load_module(run.directory / "checkpoints/last.ckpt")
    return module.sample(10, steps, range(10), torch.Generator().manual_seed(0))


def picture(methods: dict[str, list[Run]], path: Path) -> None:
    """Draw a row of digits for each method and each number of steps."""
    size = (1.5 + 4.2 * len(DRAWN), 0.44 * len(methods) + 0.3)
    figure, axes = plt.subplots(len(methods), len(DRAWN), figsize=size, squeeze=False)
    for number, ((name, runs), line) in enumerate(zip(methods.items(), axes, strict=True)):
        for axis, steps in zip(line, DRAWN, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{steps} step{'s' * (steps > 1)}" if number == 0 else "", fontsize=10)
            images = digits(runs[0], steps)
            if images is None:
                axis.axis("off")
            else:
                axis.imshow(sheet(images).permute(1, 2, 0))
        line[0].set_ylabel(name, fontsize=10, rotation=0, ha="right", va="center")
    figure.subplots_adjust(left=0.13, right=0.995, bottom=0.005, top=0.97, wspace=0.03, hspace=0.06)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Read the runs, print the tables, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--output", type=Path, default=Path("samples.png"))
    args = parser.parse_args()
    found: dict[str, list[Run]] = {}
    for run in read_runs(args.runs):
        if run.method != "DiffusionModule":
            found.setdefault(method(run), []).append(run)
    methods = dict(
        sorted(found.items(), key=lambda entry: mean(value(run, "frechet_mnist2", 1) or inf for run in entry[1]))
    )
    for table in (main_table(methods), *(other_table(methods, steps) for steps in DRAWN)):
        print(table.markdown())
    picture(methods, args.output)


if __name__ == "__main__":
    main()
