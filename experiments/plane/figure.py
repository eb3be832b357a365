"""The figure and the tables of this page, from the checkpoints and logs of its runs.

python experiments/plane/figure.py runs/plane-* [--output experiments/plane/samples.png]

The rows of the figure are the methods, its columns the evaluations of the network. The tables are in Markdown: the
energy distances, and the error of one step, the root mean square distance from the end of the exact trajectory from the
same noise, both as the mean over the versions of a run and their standard deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cm_lightning import load_module
from cm_lightning.core.noise import unit_noise
from cm_lightning.core.oracle import BoxesOracle
from cm_lightning.data.toy import draw
from cm_lightning.errors import ConfigError
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.flow_map import FlowMapModule
from cm_lightning.report.runs import Run, read_runs

STEPS = (1, 2, 4, 8, 16)
#: The level from which trajectories start that begin with pure noise: the data are 1 / 20,000 of it.
FAR = 1e4


def checkerboard() -> BoxesOracle:
    """The distribution of the shape ``checkerboard``, whose trajectories are exact."""
    corners = [(column, column % 2 + 2 * row) for column in range(4) for row in range(2)]
    centres = (torch.tensor(corners, dtype=torch.float64) + 0.5) / 2 - 1
    return BoxesOracle(centres, half=0.25, steps=512)


def start_level(module: GenerativeModule) -> float:
    """The noise level, in units of VE, at which a module's samples in one step start."""
    level = module.default_sigmas(1)[0]
    if not isinstance(module, FlowMapModule):
        return level
    return min(level / (1 - level), FAR) if level < 1 else FAR


class Exact:
    """The ends of the exact trajectories from fixed noise, computed once for each level.

    Args:
        noise: unit noise (N, 2).
    """

    def __init__(self, noise: Tensor) -> None:
        self.noise, self.oracle, self._ends = noise, checkerboard(), dict[float, Tensor]()

    def ends(self, level: float) -> Tensor:
        """The ends (N, 2) from a level."""
        if level not in self._ends:
            z = self.noise.double()
            self._ends[level] = self.oracle.consistency(level * z, torch.full((len(z),), level, dtype=torch.float64))
        return self._ends[level]

    @torch.no_grad()
    def error(self, module: GenerativeModule) -> float:
        """The root mean square distance of the samples in one step from the exact ends."""
        samples = module.generate(self.noise, None, module.default_sigmas(1), None)
        return float((samples - self.ends(start_level(module))).square().sum(1).mean().sqrt())


def samples(module: GenerativeModule, steps: int, n: int) -> Tensor | None:
    """Samples (n, 2) from the same noise for all; None where the module is not sampled in so many steps."""
    try:
        return module.sample(n, steps, generator=torch.Generator().manual_seed(0))
    except ConfigError:
        return None


def picture(rows: list[tuple[str, list[Tensor | None]]], path: Path) -> None:
    """Draw the points of each method, and the data beside the first."""
    columns = 1 + len(STEPS)
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.05 * columns + 0.9, 1.05 * len(rows)), squeeze=False)
    data = draw("checkerboard", len(rows[0][1][0]), torch.Generator().manual_seed(1))[0]  # type: ignore[arg-type]
    heads = ["data", *(f"{steps} step{'s' * (steps > 1)}" for steps in STEPS)]
    for number, ((name, drawn), line) in enumerate(zip(rows, axes, strict=True)):
        for axis, head, points in zip(line, heads, [data, *drawn], strict=True):
            axis.set(xticks=[], yticks=[], xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
            if number == 0:
                axis.set_title(head, fontsize=9)
            if points is None:
                axis.axis("off")
                continue
            axis.hist2d(*points.T.numpy(), bins=50, range=[(-1.25, 1.25)] * 2, cmap="magma_r", vmax=len(points) / 400)
        line[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    figure.subplots_adjust(left=0.15, right=0.995, bottom=0.005, top=0.975, wspace=0.04, hspace=0.04)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def cell(found: Iterable[float | None], digits: int = 4) -> str:
    """The mean and the standard deviation of what was found, as text."""
    values = [value for value in found if value is not None]
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    """Read the runs, print the table, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--output", type=Path, default=Path("samples.png"))
    parser.add_argument("--points", type=int, default=20_000)
    args = parser.parse_args()
    methods: dict[str, list[Run]] = {}
    for run in read_runs(args.runs):
        methods.setdefault(run.name.removeprefix("plane-"), []).append(run)
    exact, rows = Exact(unit_noise((2000, 2), torch.Generator().manual_seed(0))), []
    print("| method | " + " | ".join(f"energy, {steps}" for steps in STEPS) + " | error of one step | seconds |")
    print("|---" * (len(STEPS) + 3) + "|")
    for name, runs in methods.items():
        modules = [load_module(run.directory) for run in runs]
        cells = [cell(run.final("energy", steps) for run in runs) for steps in STEPS]
        error, seconds = cell((exact.error(module) for module in modules), 3), cell((run.seconds for run in runs), 1)
        print(f"| {name} | " + " | ".join([*cells, error, seconds]) + " |", flush=True)
        rows.append((name, [samples(modules[0], steps, args.points) for steps in STEPS]))
    picture(rows, args.output)


if __name__ == "__main__":
    main()
