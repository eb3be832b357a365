"""``cm-lightning search``: find the best noise levels of a few steps for a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import COUNT, FINITE, NATURAL, POSITIVE, SEED, at_least
from cm_lightning.errors import CheckpointError, ConfigError, DataError
from cm_lightning.files import require_writable

if TYPE_CHECKING:
    from torch import Tensor

    from cm_lightning.core.level_search import Curve
    from cm_lightning.data.base import GenerativeDataModule
    from cm_lightning.modules.base import GenerativeModule


def parser() -> CommandParser:
    """The options of ``search``."""
    parser = CommandParser(
        "search",
        "Find the best noise levels of 2 ... N steps for a checkpoint, one by one, by the quality of samples from "
        "the same noise. They are written beside the checkpoint, where sample and export find them.",
    )
    add = parser.add_argument
    add("--ckpt_path", required=True, help="a checkpoint, openai:FILE or diffusers:FOLDER")
    add("--steps", type=at_least(2).parse, default=2, help="the largest number of steps; default: 2")
    add(
        "--measure",
        help="fid, kid, frechet_mnist, accuracy, frechet_resnet50, ...; default: frechet_mnist for MNIST, else fid",
    )
    add("--extractor_weights", help="weights of the measuring network; default: its usual ones")
    add("--data", help="a folder or .zip of real images, or MNIST; default: the data of the checkpoint's run")
    add("--num_samples", type=at_least(2).parse, default=1000, help="samples for each score; for fid use 10000 or more")
    add("--labels", type=NATURAL.parse_list, help="classes, repeated in turn: 0,1,2; default: all in turn")
    add("--guidance", type=FINITE.parse, default=0.0, help="as in sample. default: 0")
    add("--seed", type=SEED.parse, default=0, help="seed of the noise, the same for all levels")
    add("--points", type=COUNT.parse, default=7, help="number of evenly spaced levels that are tried first")
    add("--tolerance", type=POSITIVE.parse, default=0.1, help="width in ln sigma at which the search ends")
    add("--output", type=Path, default=Path("search.png"), help="a .png of the curves")
    add("--weights", choices=("ema", "raw"), help="default: the averaged ones if there are any")
    add("--batch_size", type=COUNT.parse, default=250)
    add("--device", default="auto", help="cpu, cuda, ...; auto uses an accelerator if there is one")
    add("--trust", action="append", default=[], help="a package whose classes the checkpoint may use")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parse, measure, draw, write."""
    options = parser()
    args = options.parse_args(argv)
    if args.output.suffix != ".png":
        options.error(f"--output {args.output}: give a .png")
    require_writable(args.output, "--output")

    from cm_lightning.device import chosen_device
    from cm_lightning.modules.found_levels import levels_file, write_found_levels
    from cm_lightning.modules.loading import load_module

    device = chosen_device(args.device)
    file = levels_file(args.ckpt_path)
    require_writable(file, "--ckpt_path: the levels are written beside it:")
    module = load_module(args.ckpt_path, args.weights, args.trust)
    data = _data(args, module)
    score = _Score(args, module.to(device), data)
    before = {n: (module.default_sigmas(n), score(module.default_sigmas(n))) for n in range(2, args.steps + 1)}
    found = _search(args, module, score)
    _draw(args.output, score, found, before)
    better = {n: curve.levels for n, curve in found.items() if curve.best[1] < before[n][1]}
    for n, curve in found.items():
        told = f"{n} steps: {_shown(curve.levels)}: {score.told(curve.best[1])}"
        print(f"{told}; before: {_shown(before[n][0])}: {score.told(before[n][1])}")
    if better:
        how = f"Found by cm-lightning search: {score.name} of {args.num_samples:,} samples, seed {args.seed}."
        write_found_levels(file, better, module.trained_steps, how)
        print(f"{', '.join(map(str, better))} steps: {file}")
    if kept := [n for n in before if n not in better]:
        print(f"{', '.join(map(str, kept))} steps: no better levels were found, so the earlier ones stay")
    print(f"curves: {args.output}")


def _search(args: argparse.Namespace, module: GenerativeModule, score: _Score) -> dict[int, Curve]:
    """The curves by the number of steps, on the module's own levels, which begin with that of one step."""
    from cm_lightning.core.level_search import Curve, search_levels
    from cm_lightning.modules.endpoint import endpoint

    end, (first,) = endpoint(module), module.default_sigmas(1)

    def levels(sigmas: Sequence[float]) -> list[float]:
        return [first, *(float(f"{end.level(sigma):.5g}") for sigma in sigmas)]

    low, high = end.sigmas
    high = min(high, end.sigma(first))
    curves = search_levels(
        lambda sigmas: score(levels(sigmas)), args.steps - 1, low, high, args.points, args.tolerance
    )  # fmt: skip
    return {
        n: Curve(tuple(levels(curve.above)), tuple((levels([sigma])[1], value) for sigma, value in curve.points))
        for n, curve in enumerate(curves, 2)
    }


#: The default measure for each subject of images; for all others it is the FID.
_MEASURES = {"digits": "frechet_mnist", "clothes": "frechet_fashion"}
#: Levels and their score.
_Before = tuple[list[float], float]


class _Score:
    """The score of samples at given levels, from the same noise each time; the lower, the better."""

    def __init__(self, args: argparse.Namespace, module: GenerativeModule, data: GenerativeDataModule) -> None:
        from cm_lightning.metrics.by_name import measure_named
        from cm_lightning.metrics.names import is_rising
        from cm_lightning.metrics.scores import Scores

        self.args, self.module = args, module
        self.name = args.measure or _MEASURES.get(data.subject or "", "fid")
        self.sign = -1 if is_rising(self.name) else 1
        measure = measure_named(self.name, args.extractor_weights)
        if lack := measure.missing():
            raise ConfigError(f"--measure {self.name}: {lack}")
        if measure.image_shape not in (None, module.image_shape):
            raise ConfigError(
                f"--measure {self.name} is for images of shape {measure.image_shape}, but the model draws "
                f"{module.image_shape}: give another measure"
            )
        self.labels = module.sample_labels(
            args.num_samples, args.labels and [args.labels[i % len(args.labels)] for i in range(args.num_samples)]
        )
        self.scores = Scores([measure])
        self.scores.to(module.device)
        self.scores.add_reference(images for images, _ in data.in_order("train"))

    def __call__(self, levels: Sequence[float]) -> float:
        values = self.scores(self._batches(levels))
        if self.name not in values:
            raise ConfigError(
                f"--measure {self.name} cannot be measured for this model, which may lack classes: give another measure"
            )
        print(f"{_shown(levels)}: {self.name} {values[self.name]:.4g}", flush=True)
        return self.sign * values[self.name]

    def told(self, value: float) -> str:
        """The score as text."""
        return f"{self.name} {self.sign * value:.4g}"

    def _batches(self, levels: Sequence[float]) -> Iterator[tuple[Tensor, Tensor | None]]:
        from cm_lightning.core.noise import generators

        for first in range(0, self.args.num_samples, self.args.batch_size):
            rows = range(first, min(first + self.args.batch_size, self.args.num_samples))
            chosen = None if self.labels is None else self.labels[rows.start : rows.stop]
            noise = generators(self.args.seed, rows)
            yield (
                self.module.sample(len(rows), None, chosen, noise, levels, self.args.guidance),
                chosen,
            )


def _data(args: argparse.Namespace, module: GenerativeModule) -> GenerativeDataModule:
    """The real images of --data, or of the run that the checkpoint belongs to."""
    from cm_lightning.data.folder import ImageFolder
    from cm_lightning.data.mnist import MNIST

    if len(shape := module.image_shape) != 3 or not hasattr(module, "sampling_sigmas"):
        raise ConfigError(
            f"--ckpt_path {args.ckpt_path} holds a {type(module).__name__}: search takes a consistency model or a flow "
            "map of images"
        )
    if args.data == "MNIST":
        data: GenerativeDataModule = MNIST()
    elif args.data:
        data = ImageFolder(args.data, size=shape[-1], channels=1 if shape[0] == 1 else 3)
    else:
        data = _data_of_run(args.ckpt_path)
    try:
        data.prepare_data()
        data.split("train")
    except DataError as error:
        raise DataError(f"--data: {error}") from error
    if tuple(data.image_shape) != shape:
        raise ConfigError(f"--data has images of shape {tuple(data.image_shape)}, but the model draws {shape}")
    return data


def _data_of_run(path: str) -> GenerativeDataModule:
    """The data module in the configuration of a checkpoint's run."""
    import cm_lightning
    from cm_lightning.data.base import GenerativeDataModule
    from cm_lightning.interop.foreign import is_foreign
    from cm_lightning.report.configs import class_name, inner, read_config
    from cm_lightning.run import find_checkpoint

    unknown = f"--ckpt_path {path} does not state its training data: give --data, a folder of images or MNIST"
    if is_foreign(path):
        raise ConfigError(unknown)
    try:
        config = read_config(find_checkpoint(path).parent.parent / "config.yaml")
        data = getattr(cm_lightning, class_name(config["data"]))(**(inner(config, "data", "init_args") or {}))
    except (CheckpointError, DataError, LookupError, AttributeError, TypeError) as error:
        raise ConfigError(unknown) from error
    if not isinstance(data, GenerativeDataModule):
        raise ConfigError(unknown)
    return data


def _shown(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:.4g}" for level in levels)


def _draw(path: Path, score: _Score, found: Mapping[int, Curve], before: Mapping[int, _Before]) -> None:
    """Plot the scores against the last level, a curve for each number of steps, and those of the earlier levels."""
    from matplotlib.figure import Figure

    from cm_lightning.report.figures import save_figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, (n, curve) in enumerate(found.items()):
        x, values = zip(*curve.points, strict=True)
        axis.plot(x, [score.sign * value for value in values], "o-", color=f"C{i}", ms=3, lw=1.2,
                  label=f"{n} steps: {_shown(curve.above)}, x")  # fmt: skip
        axis.plot(curve.best[0], score.sign * curve.best[1], "*", color=f"C{i}", ms=14)
        axis.axhline(score.sign * before[n][1], color=f"C{i}", ls=":", lw=1, label=f"before: {_shown(before[n][0])}")
    axis.set(xscale="log", xlabel="noise level x of the last step", ylabel=score.name)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)
