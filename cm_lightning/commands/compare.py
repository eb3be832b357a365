"""``cm-lightning compare``: several runs side by side, from their own files."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm_lightning.errors import DataError
from cm_lightning.files import replacing

if TYPE_CHECKING:
    from cm_lightning.report.runs import Run
    from cm_lightning.report.tables import Table

_STYLE = (
    "body{font:15px sans-serif;max-width:72em;margin:2em auto}"
    "td,th{padding:.2em .8em;text-align:right}img{max-width:100%}"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cm-lightning compare",
        description="A table, curves, and samples of several runs: compare.md, compare.html and PNG files.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="runs/NAME/version_0; resumed ones are joined"
    )
    parser.add_argument("--metric", help="frechet_mnist, fid, accuracy, ...; default: the Frechet distance they logged")
    parser.add_argument("--nfe", type=int, default=1, help="evaluations of the curves, the samples and the target")
    parser.add_argument("--target", type=float, help="a quality: who reached it first, and by how much")
    parser.add_argument("--output", type=Path, default=Path("compare"), help="the folder to write to")
    return parser


def main(argv: Sequence[str]) -> None:
    """Read, tabulate, draw, write."""
    args = _parser().parse_args(argv)

    from cm_lightning.report.figures import curves, sheets
    from cm_lightning.report.runs import read_runs
    from cm_lightning.report.tables import baseline_table, few_step_table, target_table

    runs = read_runs(args.runs)
    metric = args.metric or _metric(runs)
    tables = [few_step_table(runs, metric), baseline_table(runs, metric)]
    if args.target is not None:
        tables.append(target_table(runs, metric, args.nfe, args.target))
    tables = [table for table in tables if table.rows]
    if not tables:
        known = sorted({score.metric for run in runs for score in run.scores})
        raise DataError(f"--metric {metric}: these runs have {', '.join(known) or 'measured nothing: add Quality'}")
    pictures = [args.output / "curves.png"] if curves(runs, metric, args.nfe, args.output / "curves.png") else []
    sheet = args.output / f"samples_nfe{args.nfe}.png"
    pictures += [sheet] if sheets(runs, args.nfe, sheet) else []
    _write(args.output, tables, pictures)
    for table in tables:
        print(table.markdown())
    print(f"{args.output / 'compare.md'}, {args.output / 'compare.html'}")


def _metric(runs: Sequence[Run]) -> str:
    """The Frechet distance that most measurements are of."""
    names = [s.metric for run in runs for s in run.scores if s.metric == "fid" or s.metric.startswith("frechet")]
    if not names:
        raise DataError("these runs measured no Frechet distance: add the callback Quality, or name another --metric")
    return max(sorted(set(names)), key=names.count)


def _write(folder: Path, tables: Sequence[Table], pictures: Sequence[Path]) -> None:
    markdown = "\n".join(table.markdown() for table in tables)
    shown = "\n".join(f"![{picture.stem}]({picture.name})\n" for picture in pictures)
    with replacing(folder / "compare.md") as path:
        path.write_text(f"# Comparison\n\n{markdown}\n{shown}")
    images = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}" alt="{picture.stem}">\n'
        for picture in pictures
    )
    body = "".join(table.html() for table in tables)
    with replacing(folder / "compare.html") as path:
        path.write_text(
            f"<!doctype html>\n<meta charset='utf-8'>\n<title>Comparison</title>\n<style>{_STYLE}</style>\n"
            f"<h1>Comparison</h1>\n{body}{images}"
        )
