"""The figure and the table of this page, from the checkpoints and logs of its runs.

python experiments/plane/figure.py runs/plane-* [--shape moons] [--output experiments/plane/samples.png]

The runs on one shape are shown. The rows of the figure are the methods, the best in one step first, and its columns the
numbers of network evaluations. The table is in Markdown: the energy distances, and the error of one step, which is the
root mean square distance from the end of the exact trajectory from the same noise. Each is the mean over the versions
of a run, with the standard deviation. The last line has the distances of other real points, and of distributions that
lack the details of the shape.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor

from cm_lightning import load_module
from cm_lightning.core.noise import unit_noise
from cm_lightning.core.oracle import BoxesOracle, MixtureOracle, Trajectories
from cm_lightning.data.toy import Shape, draw
from cm_lightning.errors import ConfigError
from cm_lightning.metrics.energy import mean_distance
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.modules.flow_map import FlowMapModule
from cm_lightning.report.runs import Run, read_runs

STEPS = (1, 2, 4, 8, 16)
#: The level at which trajectories from pure noise start: the data are 1 / 20,000 of it.
FAR = 1e4


def checkerboard(steps: int = 512) -> BoxesOracle:
    """The distribution of the shape ``checkerboard``, whose trajectories are exact."""
    corners = [(column, column % 2 + 2 * row) for column in range(4) for row in range(2)]
    centres = (torch.tensor(corners, dtype=torch.float64) + 0.5) / 2 - 1
    return BoxesOracle(centres, half=0.25, steps=steps)


def gaussians(steps: int = 512) -> MixtureOracle:
    """The distribution of the shape ``gaussians``: eight on a circle."""
    angles = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return MixtureOracle(0.7 * torch.stack([angles.cos(), angles.sin()], 1), _equal(8, 0.05), steps=steps)


def moons(steps: int = 512, each: int = 200) -> MixtureOracle:
    """The distribution of the shape ``moons``, with each arc as Gaussians whose distances are below their width."""
    angles = (torch.arange(each, dtype=torch.float64) + 0.5) * (math.pi / each)
    arcs = [torch.stack([angles.cos() - 0.5 * side, side * (angles.sin() - 0.25)], 1) for side in (1, -1)]
    return MixtureOracle(0.6 * torch.cat(arcs), _equal(2 * each, 0.03), steps=steps)


def _equal(n: int, value: float) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


ORACLES: Mapping[Shape, Callable[[], Trajectories]] = {
    "checkerboard": checkerboard,
    "gaussians": gaussians,
    "moons": moons,
}


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
        oracle: the distribution of the data.
    """

    def __init__(self, noise: Tensor, oracle: Trajectories) -> None:
        self.noise, self.oracle, self._ends = noise, oracle, dict[float, Tensor]()

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
    """Samples (n, 2) from the same noise for all; None if the module is not sampled in this many steps."""
    try:
        return module.sample(n, steps, generator=torch.Generator().manual_seed(0))
    except ConfigError:
        return None


def picture(rows: list[tuple[str, list[Tensor | None]]], shape: Shape, path: Path) -> None:
    """Draw the points of each method, and those of the data beside them."""
    columns = 1 + len(STEPS)
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.05 * columns + 0.9, 1.05 * len(rows)), squeeze=False)
    data = draw(shape, len(rows[0][1][0]), torch.Generator().manual_seed(1))[0]  # type: ignore[arg-type]
    heads = ["data", *(f"{steps} step{'s' * (steps > 1)}" for steps in STEPS)]
    for number, ((name, found), line) in enumerate(zip(rows, axes, strict=True)):
        for axis, head, points in zip(line, heads, [data, *found], strict=True):
            axis.set(xticks=[], yticks=[], xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
            if number == 0:
                axis.set_title(head, fontsize=9)
            if points is None:
                axis.axis("off")
                continue
            axis.hist2d(*points.T.numpy(), bins=40, range=[(-1.25, 1.25)] * 2, cmap="magma_r", vmax=len(points) / 300)
        line[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    figure.subplots_adjust(left=0.15, right=0.995, bottom=0.005, top=0.975, wspace=0.04, hspace=0.04)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(48).save(path, optimize=True)  # a quarter of the size


def energies(runs: Sequence[Run], steps: int) -> list[float]:
    """The last energy distance of each run that has one."""
    return [value for run in runs if (value := run.final("energy", steps)) is not None]


def blurred(shape: Shape, points: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Points (N, 2) of distributions that lack the details of a shape, of which points (N, 2) are given."""
    z = torch.randn(points.shape, generator=generator)
    found = {"a Gaussian of the same moments": points.mean(0) + z @ torch.linalg.cholesky(points.T.cov()).T}
    if shape == "gaussians":
        angle = 2 * math.pi * torch.rand(len(points), generator=generator)
        found["an even ring"] = 0.7 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * z
    if shape == "checkerboard":
        found["an even square"] = 2 * torch.rand(points.shape, generator=generator) - 1
    return found


def references(shape: Shape, n: int = 10_000) -> str:
    """The energy distances of distributions that lack the details of a shape, as text."""
    generator = torch.Generator().manual_seed(0)
    points = draw(shape, n, generator)[0]
    spread = mean_distance(points)
    found = {
        name: 2 * mean_distance(points, others) - mean_distance(others) - spread
        for name, others in blurred(shape, points, generator).items()
    }
    return "; ".join(f"{name}: {energy:.4f}" for name, energy in found.items())


def cell(values: Sequence[float], digits: int) -> str:
    """The mean and the standard deviation as text, which is empty without values."""
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    """Read the runs, print the table, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--shape", choices=ORACLES, default="checkerboard")
    parser.add_argument("--output", type=Path, default=Path("samples.png"))
    parser.add_argument("--points", type=int, default=20_000)
    args = parser.parse_args()
    methods: dict[str, list[Run]] = {}
    for run in read_runs(args.runs):
        if run.data != f"Toy {args.shape}":
            continue
        methods.setdefault(run.name.removeprefix("plane-"), []).append(run)
    if not methods:
        raise SystemExit(f"none of these runs learned {args.shape}: give another --shape, or other runs")
    in_order = sorted(methods.items(), key=lambda entry: mean(energies(entry[1], 1)))
    exact, rows = Exact(unit_noise((2000, 2), torch.Generator().manual_seed(0)), ORACLES[args.shape]()), []
    heads = [f"{steps} step{'s' * (steps > 1)}" for steps in STEPS]
    print("| method | energy, " + " | ".join(heads) + " | error of one step |")
    print("|---" * (len(STEPS) + 2) + "|")
    for name, runs in in_order:
        modules = [load_module(run.directory / "checkpoints/last.ckpt") for run in runs]
        cells = [cell(energies(runs, steps), 4) for steps in STEPS]
        error = cell([exact.error(module) for module in modules], 3)
        print(f"| {name} | " + " | ".join([*cells, error]) + " |", flush=True)
        rows.append((name, [samples(modules[0], steps, args.points) for steps in STEPS]))
    real = cell([run.floor["energy"] for runs in methods.values() for run in runs][:1], 5)
    print(f"real points: {real}; {references(args.shape)}")
    picture(rows, args.shape, args.output)


if __name__ == "__main__":
    main()
