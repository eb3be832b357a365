"""Tables of runs: the same rows as Markdown and as HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cm_lightning.metrics.names import decimals, is_rising
from cm_lightning.report.configs import differences
from cm_lightning.report.runs import Run


@dataclass(frozen=True)
class Table:
    """A table: title, heads of the columns, and rows of text."""

    title: str
    heads: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [
            " | ".join(cell.replace("|", "\\|") for cell in row)
            for row in [self.heads, ["---"] * len(self.heads), *self.rows]
        ]
        return f"## {self.title}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"

    def html(self) -> str:
        """The table in HTML."""
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in self.heads)
        rows = "".join(
            "<tr>" + "".join(f"<td{_kind(cell)}>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
            for row in self.rows
        )
        return f"<h2>{html.escape(self.title)}</h2>\n<div><table>\n<tr>{heads}</tr>\n{rows}</table></div>\n"


def _kind(cell: str) -> str:
    """The HTML class of text, which may be broken over lines, unlike numbers."""
    return " class=text" if any(word not in ("nan", "inf") for word in re.findall("[A-Za-z]{2,}", cell)) else ""


def few_step_table(runs: Sequence[Run], metric: str) -> Table:
    """Each run of a consistency model at each measured number of evaluations, and the means over seeds."""
    runs = [run for run in runs if _few_steps(run, metric)]
    nfes = sorted({nfe for run in runs for nfe in _few_steps(run, metric)})
    accuracy = _accuracy_beside(metric)
    also = [accuracy] if metric != accuracy and any(run.final(accuracy, nfe) for run in runs for nfe in nfes) else []
    heads = [
        "run",
        "method",
        "seed",
        "learns from",
        "parameters",
        "images",
        "seconds",
        *(_evaluations(nfe) for nfe in nfes),
    ]
    rows = []
    for name in dict.fromkeys(run.label for run in runs):
        seeds = [run for run in runs if run.label == name]
        for run in seeds:
            cells = [" / ".join(_number(m, run.final(m, nfe)) for m in [metric, *also]) for nfe in nfes]
            rows.append([name, run.method, str(run.seed), run.origin, _whole(run.parameters), _whole(run.images),
                         _whole(run.seconds), *cells])  # fmt: skip
        if len(seeds) > 1:
            cells = [
                " / ".join(_mean(m, [run.final(m, nfe) for run in seeds]) for m in [metric, *also]) for nfe in nfes
            ]
            rows.append([name, seeds[0].method, f"mean of {len(seeds)}", "", "", "", "", *cells])
    return Table(f"{' / '.join([metric, *also])} by evaluations of the network", heads, rows)


def baseline_table(runs: Sequence[Run], metric: str) -> Table:
    """The last measurement of each diffusion model, by solver and number of evaluations."""
    last = {(run.label, str(run.seed), s.sampler, s.nfe): (run, s) for run in runs for s in run.scores
            if s.sampler and s.metric == metric}  # fmt: skip
    accuracy = _accuracy_beside(metric)
    rows = [
        [
            name,
            seed,
            sampler,
            str(nfe),
            _number(metric, score.value),
            _number(accuracy, run.final(accuracy, nfe)),
            _whole(run.images),
            _whole(run.seconds),
        ]
        for (name, seed, sampler, nfe), (run, score) in sorted(last.items(), key=lambda item: item[0])
    ]
    heads = ["run", "seed", "solver", "evaluations", metric, accuracy, "images", "seconds"]
    return Table("Diffusion baselines", heads, rows)


def measure_table(runs: Sequence[Run], metric: str) -> Table:
    """All other metrics, as means over seeds, and those of real images; no rows if there are none."""
    shown = {metric, _accuracy_beside(metric)}
    metrics = [name for name in dict.fromkeys(s.metric for run in runs for s in run.scores) if name not in shown]
    real = {name: value for run in reversed(runs) for name, value in run.floor.items()}
    rows = [["real images", "", *(_number(name, real.get(name)) for name in metrics)]] if real else []
    for label in dict.fromkeys(run.label for run in runs):
        seeds = [run for run in runs if run.label == label]
        for nfe in sorted({s.nfe for run in seeds for s in run.scores if s.metric in metrics}):
            means = [_mean(name, [run.final(name, nfe) for run in seeds]) for name in metrics]
            rows.append([label, str(nfe), *means])
    return Table("Other metrics, as means over seeds", ["run", "evaluations", *metrics], rows if metrics else [])


def run_table(runs: Sequence[Run]) -> Table:
    """All runs that were read: the directory of each, the time of its last metrics, and its data."""
    rows = [[run.label, str(run.seed), str(run.directory), run.date, run.data] for run in runs]
    return Table("Runs", ["run", "seed", "directory", "date", "data"], rows)


def difference_table(runs: Sequence[Run]) -> Table:
    """The options that differ between the runs, with one column for each configuration."""
    first = {run.label: run for run in reversed(runs)}
    labels = list(dict.fromkeys(run.label for run in runs))
    return Table("What differs", ["option", *labels], differences([first[label].config for label in labels]))


def target_table(runs: Sequence[Run], metric: str, nfe: int, target: float) -> Table:
    """When each run first reached a target quality, compared with the fastest run."""
    reached = [(run, _first(run, metric, nfe, target)) for run in runs if run.curve(metric, nfe)]
    reached.sort(key=lambda pair: pair[1][1] if pair[1] else math.inf)
    rows = []
    for run, first in reached:
        best = reached[0][1]
        if first is None or best is None:
            rows.append([run.label, str(run.seed), "not reached", "", "", ""])
        else:
            times = f"{first[1] / best[1]:.2f}" if best[1] else ""
            rows.append(
                [run.label, str(run.seed), _number(metric, first[2]), _whole(first[0]), _whole(first[1]), times]
            )
    sign = ">=" if is_rising(metric) else "<="
    title = f"First measurement with {metric} {sign} {target:g} at {_evaluations(nfe)}"
    return Table(title, ["run", "seed", metric, "images", "seconds", "times the fastest"], rows)


def _first(run: Run, metric: str, nfe: int, target: float) -> tuple[float, float, float] | None:
    good = [p for p in run.curve(metric, nfe) if (p[2] >= target if is_rising(metric) else p[2] <= target)]
    return good[0] if good else None


def _few_steps(run: Run, metric: str) -> set[int]:
    return {score.nfe for score in run.scores if score.metric == metric and not score.sampler}


def _evaluations(nfe: int) -> str:
    return f"{nfe} evaluation" + "s" * (nfe > 1)


def _accuracy_beside(metric: str) -> str:
    """The accuracy by the same classifier."""
    return "accuracy2" if re.fullmatch(r"accuracy2|\w+_mnist2", metric) else "accuracy"


def _number(metric: str, value: float | None) -> str:
    return "" if value is None else f"{value:.{decimals(metric, value)}f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _mean(metric: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _number(metric, sum(known) / len(known)) if known else ""
