"""``cm-lightning compare``: compare several runs, from their own files."""

from __future__ import annotations

import argparse
import base64
import difflib
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import COUNT, FINITE
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.files import replacing, require_writable
from cm_lightning.metrics.names import has_direction

if TYPE_CHECKING:
    from cm_lightning.report.runs import Run
    from cm_lightning.report.tables import Table

_STYLE = (
    "body{font:15px sans-serif;max-width:72em;margin:1em auto;padding:0 1em}div{overflow-x:auto}"
    "td,th{padding:.2em .8em;text-align:right;white-space:nowrap}td.text{text-align:left;white-space:normal}"
    "img{max-width:100%}"
)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="compare",
        description="Compare runs by tables, curves and samples: compare.md, compare.html and PNG files.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="runs/NAME/version_0, or runs/NAME for all versions; resumed ones are joined",
    )
    parser.add_argument("--metric", help="frechet_mnist, fid, accuracy, ...; default: the Frechet distance they logged")
    parser.add_argument("--nfe", type=COUNT.parse, help="evaluations of the curves and the target; default: the fewest")
    parser.add_argument("--target", type=FINITE.parse, help="a value of the metric: report which run reached it first")
    parser.add_argument("--output", type=Path, default=Path("compare"), help="the folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace the comparison that is in the folder")
    return parser


def main(argv: Sequence[str]) -> None:
    """Read, tabulate, draw, write."""
    args = _parser().parse_args(argv)
    _require_place(args.output, args.overwrite)
    if args.target is not None and args.metric and not has_direction(args.metric):
        raise ConfigError(
            f"--target: neither more nor less {args.metric} is better, but the value of real images: "
            "leave --target out, or name another --metric"
        )

    from cm_lightning.report.figures import curves, losses, sheets
    from cm_lightning.report.runs import read_runs
    from cm_lightning.report.tables import (
        baseline_table,
        difference_table,
        few_step_table,
        measure_table,
        run_table,
        target_table,
    )

    notes: list[str] = []
    runs = read_runs(args.runs, notes.append)
    metric = args.metric or _metric(runs)
    nfe = _nfe(runs, metric, args.nfe)
    without = [f"{run.directory} measured no {metric}" for run in runs if all(s.metric != metric for s in run.scores)]
    notes += without
    tables = [run_table(runs), few_step_table(runs, metric), baseline_table(runs, metric), measure_table(runs, metric)]
    if args.target is not None:
        tables.append(target_table(runs, metric, nfe, args.target))
    tables = [table for table in (*tables, difference_table(runs)) if table.rows]
    quality, training = args.output / "curves.png", args.output / "losses.png"
    for old in [quality, training, *args.output.glob("samples_nfe*.png")]:
        old.unlink(missing_ok=True)  # from the comparison that is replaced
    pictures = [quality] if curves(runs, metric, nfe, quality) else []
    pictures += [training] if losses(runs, training) else []
    for number in sorted({score.nfe for run in runs for score in run.scores} | {nfe}):
        sheet = args.output / f"samples_nfe{number}.png"
        pictures += [sheet] if sheets(runs, number, sheet) else []
    _write(args.output, tables, pictures, notes)
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
    for table in tables:
        print(table.markdown())
    print(f"{args.output / 'compare.md'}, {args.output / 'compare.html'}")


def _require_place(folder: Path, overwrite: bool) -> None:
    """Check, before anything is read, that the page can be written and does not replace another."""
    for page in (folder / "compare.md", folder / "compare.html"):
        require_writable(page, "--output")
        if page.exists() and not overwrite:
            raise ConfigError(f"--output {folder} holds a comparison: name another folder, or add --overwrite")


def _nfe(runs: Sequence[Run], metric: str, asked: int | None) -> int:
    """The number of evaluations for the curves, of consistency models unless only others were measured."""
    scores = [score for run in runs for score in run.scores]
    measured = [score for score in scores if score.metric == metric]
    if not measured:
        known = sorted({score.metric for score in scores})
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"--metric {metric}: these runs have {', '.join(known) or 'measured nothing: add Quality'}{hint}"
        )
    numbers = sorted({score.nfe for score in measured})
    if asked is not None and asked not in numbers:
        raise ConfigError(f"--nfe {asked}: these runs measured {metric} at {', '.join(map(str, numbers))}")
    return asked or min({score.nfe for score in measured if not score.sampler} or numbers)


def _metric(runs: Sequence[Run]) -> str:
    """The Frechet distance that most measurements have."""
    names = [s.metric for run in runs for s in run.scores if s.metric == "fid" or s.metric.startswith("frechet")]
    if not names:
        raise DataError("these runs measured no Frechet distance: add the callback Quality, or name another --metric")
    return max(sorted(set(names)), key=names.count)


def _write(folder: Path, tables: Sequence[Table], pictures: Sequence[Path], notes: Sequence[str]) -> None:
    markdown = "\n".join(table.markdown() for table in tables)
    shown = "\n".join(f"![{picture.stem}]({picture.name})\n" for picture in pictures)
    with replacing(folder / "compare.md") as path:
        path.write_text(f"# Comparison\n\n{markdown}\n{shown}" + "".join(f"\nNote: {note}\n" for note in notes))
    images = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}" alt="{picture.stem}">\n'
        for picture in pictures
    )
    body = "".join(table.html() for table in tables)
    remarks = "".join(f"<p>Note: {html.escape(note)}</p>\n" for note in notes)
    with replacing(folder / "compare.html") as path:
        path.write_text(
            "<!doctype html>\n<meta charset='utf-8'>\n"
            "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
            f"<title>Comparison</title>\n<style>{_STYLE}</style>\n"
            f"<h1>Comparison</h1>\n{body}{images}{remarks}"
        )
