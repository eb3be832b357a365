"""``cm-lightning evaluate``: measure text-to-image models over numbers of steps and guidance scales."""

from __future__ import annotations

import argparse
import csv
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm_lightning.commands.named_model import NamedModel
from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import COUNT, NON_NEGATIVE, POSITIVE, SEED, at_least
from cm_lightning.errors import ConfigError
from cm_lightning.files import replacing, require_writable
from cm_lightning.run import RunNote

if TYPE_CHECKING:
    from torch import Tensor

    from cm_lightning.metrics.prompts import PromptScores
    from cm_lightning.report.cells import Cell


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = CommandParser(
        prog="evaluate",
        description="Measure text-to-image models by steps and guidance scales: tables, heat maps, sample sheets. "
        "Earlier measurements are kept.",
    )
    add = parser.add_argument
    add(
        "--model",
        action="append",
        default=[],
        metavar="NAME=PIPELINE[+LORA or UNET]",
        help="may repeat; the same name adds a seed",
    )
    add("--steps", type=COUNT.parse_list, help="default: those that a student was distilled for, else 1,2,4,8")
    add("--guidance", type=NON_NEGATIVE.parse_list, help="default: 1 (no guidance) for a student, else 1,1.5,2,4")
    add("--data", default="CaptionedMNIST", help="CaptionedMNIST, CaptionedPairs, or a folder of captioned images")
    add("--num_samples", type=at_least(2).parse, default=1000)
    add(
        "--batch_size",
        type=COUNT.parse,
        default=50,
        help="number of images drawn at a time; the time per image depends on it",
    )
    add("--seed", type=SEED.parse, default=0, help="seed of the noise")
    add("--clip", help="folder or hub name of a CLIP model, for the CLIP score")
    add("--inception", help="torch-fidelity's weights for the FID of a folder's images; downloaded if not given")
    add(
        "--latency",
        type=POSITIVE.parse,
        help="seconds: also report the best setting that takes at most this time per image",
    )
    add(
        "--scheduler",
        choices=("euler", "lcm", "trailing", "own"),
        help="default: the student's own if its files name it, as SDXL-Lightning's do; else lcm; trailing for a base",
    )
    add("--device", default="auto")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    add("--output", type=Path, default=Path("runs/evaluate"))
    add("--wandb", choices=("off", "online", "offline"), default="off", help="log each cell to Weights & Biases")
    return parser


def main(argv: Sequence[str]) -> None:
    """Measure the missing cells, then report all cells."""
    args = make_parser().parse_args(argv)
    models = [NamedModel.parse(text) for text in args.model]
    for model in models:
        model.require_files()
    require_writable(args.output / "grid.md", "--output")
    require_writable(args.output / "cells" / "x.json", "--output")
    trial = args.output / "trials" / hashlib.sha256(repr(sorted(vars(args).items())).encode()).hexdigest()[:12]
    RunNote(str(trial)).leave()
    cells = _measure(args, models) if models else []
    _log(args, cells, trial)
    _report(args.output, args.latency)
    RunNote(str(trial), finished=True).leave()


def _measure(args: argparse.Namespace, models: Sequence[NamedModel]) -> list[Cell]:
    """The requested cells: those measured earlier, and the missing ones."""
    from cm_lightning.report.cells import cell_path, read_cells, require_same_way

    subject = _Subject.make(args)
    kept = {cell.path: cell for cell in read_cells(args.output)}
    for cell in kept.values():
        require_same_way(cell, subject.way(args), args.output)
    cells: list[Cell] = []
    for model in models:
        settings = model.settings(args.steps, args.guidance, args.scheduler)
        paths = {setting: cell_path(model.name, model.weights, *setting) for setting in settings}
        missing = [setting for setting, path in paths.items() if path not in kept]
        cells += [kept[path] for path in paths.values() if path in kept]
        cells += _measure_model(args, model, missing, subject) if missing else []
    return cells


@dataclass
class _Subject:
    """The prompts, and the scores of their images."""

    prompts: list[str]
    labels: Tensor | None
    scores: PromptScores
    size: tuple[int, int] | None

    @classmethod
    def make(cls, args: argparse.Namespace) -> _Subject:
        from cm_lightning.data import captions
        from cm_lightning.data.captioned_folder import CaptionedFolder
        from cm_lightning.device import chosen_device
        from cm_lightning.metrics.clip_score import ClipScore
        from cm_lightning.metrics.extractor import Inception
        from cm_lightning.metrics.prompts import PromptScores

        known = {"CaptionedMNIST": captions.CaptionedMNIST, "CaptionedPairs": captions.CaptionedPairs}
        if args.data not in known and not Path(args.data).is_dir():
            raise ConfigError(f"--data {args.data}: choose one of {', '.join(known)}, or a folder of captioned images")
        device = chosen_device(args.device)
        clip = ClipScore(args.clip, device) if args.clip else None
        if args.data in known:
            data = known[args.data]()
            prompts, labels = data.prompts(args.num_samples)
            scores = PromptScores.of_digits(data.digits, data.labelled("train")[0], clip, device)
            return cls(prompts, labels, scores, data.image_shape[1:])
        folder = CaptionedFolder(args.data)
        held_out = [caption for _, texts in folder.in_order("val") for caption in texts]
        prompts = [held_out[i % len(held_out)] for i in range(args.num_samples)]
        real = (images for split in ("train", "val") for images, _ in folder.in_order(split))
        return cls(prompts, None, PromptScores([Inception(args.inception)], real, clip, device), None)

    def way(self, args: argparse.Namespace) -> dict[str, Any]:
        """Everything that cells must share to be compared."""
        prompts = hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:8]
        options = ("data", "num_samples", "seed", "scheduler", "dtype", "clip", "inception")
        return {**{name: getattr(args, name) for name in options}, "prompts": prompts}


def _measure_model(
    args: argparse.Namespace, model: NamedModel, settings: Sequence[tuple[int, float]], subject: _Subject
) -> list[Cell]:
    from cm_lightning.device import chosen_device
    from cm_lightning.latent.draw import draw
    from cm_lightning.latent.pipelines import few_step_pipeline, split_parts

    device, option, how = chosen_device(args.device), f"--model {model.name}:", model.told[1] if model.told else None
    loras, unet = split_parts(model.parts, option)
    pipe = few_step_pipeline(
        model.pipeline, dict.fromkeys(loras, 1.0), args.scheduler, device, args.dtype, option, unet, how
    )
    draw(pipe, subject.prompts[: args.batch_size], 1, 1.0, args.seed, size=subject.size)  # the first call is slow
    cells = []
    for steps, guidance in settings:
        options = how.options(steps, args.scheduler) if how else {}
        cell, images = _measure_cell(args, model, pipe, steps, guidance, subject, options)
        _write_sheet(args.output, cell, images)
        cell.write(args.output)
        cells.append(cell)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in cell.scores.items())
        print(f"{model.name}, {steps} steps, guidance {guidance:g}, {cell.nfe} evaluations: {shown}", flush=True)
    return cells


def _measure_cell(
    args: argparse.Namespace,
    model: NamedModel,
    pipe: Any,
    steps: int,
    guidance: float,
    subject: _Subject,
    options: dict[str, Any],
) -> tuple[Cell, Tensor]:
    from cm_lightning.latent.draw import draw_all, evaluations
    from cm_lightning.report.cells import Cell

    start = time.perf_counter()
    size = subject.size
    pixels = draw_all(pipe, subject.prompts, steps, guidance, args.seed, args.batch_size, size=size, **options)
    seconds = (time.perf_counter() - start) / len(pixels)
    scores = subject.scores(pixels, subject.prompts, subject.labels)
    nfe = evaluations(pipe, steps, guidance)
    return Cell(model.name, model.weights, steps, guidance, subject.way(args), nfe, seconds,
                args.batch_size, scores), pixels  # fmt: skip


def _write_sheet(folder: Path, cell: Cell, pixels: Tensor) -> None:
    from cm_lightning.images import sheet, to_unit_range, write_png

    write_png(folder / "samples" / Path(cell.path).with_suffix(".png"), sheet(to_unit_range(pixels[:50]), 10))


def _log(args: argparse.Namespace, cells: Sequence[Cell], trial: Path) -> None:
    """Log to the sweep that started this trial: to a file of metrics for ``cm-lightning sweep``, or to W&B."""
    rows = [{**cell.scores, "seconds": cell.seconds, "nfe": cell.nfe} for cell in cells]
    if not rows:
        return
    with replacing(trial / "metrics.csv") as path, open(path, "w", newline="") as file:
        # earlier cells may lack metrics
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    if args.wandb == "off":
        return
    import wandb

    mode: Any = "offline" if args.wandb == "offline" else None
    config = {"cells": [{"model": cell.model, "steps": cell.steps, "guidance": cell.guidance} for cell in cells]}
    with wandb.init(project="cm_lightning", dir=str(args.output), config=config, mode=mode) as run:
        for row in rows:
            run.log(row)


def _report(folder: Path, latency: float | None) -> None:
    from cm_lightning.metrics.names import is_leading
    from cm_lightning.report.cells import read_cells, settings
    from cm_lightning.report.grids import best_table, grid_table, guidance_table, heat_maps, sample_sheet

    found = settings(read_cells(folder))
    if not found:
        raise ConfigError(f"nothing has been measured in {folder}: give --model NAME=PIPELINE")
    metrics = [name for name in found[0].cells[0].scores if all(name in c.scores for s in found for c in s.cells)]
    leading = [name for name in metrics if is_leading(name)]
    tables = [best_table(found, metrics, latency), guidance_table(found, leading), grid_table(found, metrics)]
    heat_maps(found, leading, folder / "heat_maps.png")
    sample_sheet(found, folder / "samples", folder / "samples.png")
    with replacing(folder / "grid.md") as path:
        path.write_text(
            "\n".join(
                [*[table.markdown() for table in tables], "![heat maps](heat_maps.png) ![samples](samples.png)\n"]
            )
        )
    print(tables[0].markdown())
    print(f"{folder / 'grid.md'}, {folder / 'heat_maps.png'}")
