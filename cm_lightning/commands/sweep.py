"""``cm-lightning sweep``: run a W&B sweep file on this machine, without an account or a server."""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import COUNT
from cm_lightning.errors import ConfigError, near
from cm_lightning.files import require_writable
from cm_lightning.sweep.definition import Sweep, read_sweep
from cm_lightning.sweep.progress import failure_in, progress
from cm_lightning.sweep.search import Search, make_search
from cm_lightning.sweep.trials import Records, Trial, alone, run_trial, search_path

_OVER = ("finished", "stopped", "failed")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "sweep",
        "Run a W&B sweep file on this machine, with one process for each trial; 'wandb sweep' takes the same file. "
        "The exit status is 1 if trials failed or none logged the metric, and 130 after an interruption.",
    )
    parser.add_argument("file", type=Path, help="sweeps/mnist_cd_vs_ct.yaml")
    parser.add_argument(
        "--count", type=COUNT.parse, help="largest number of trials; default: run_cap, or the whole grid"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands without running them")
    parser.add_argument("--resume", action="store_true", help="resume a sweep: finished trials are kept")
    parser.add_argument("--retry_failed", action="store_true", help="like --resume, and run failed trials again")
    parser.add_argument("--output", type=Path, help="default: runs/sweeps/NAME")
    return parser


def main(argv: Sequence[str]) -> None:
    """Propose, run, record, rank.

    Raises:
        ConfigError: the file or an option is wrong; this is found before anything runs.
        SystemExit: with status 1, if trials failed or none logged the metric.
        KeyboardInterrupt: after the trial's processes have ended and the command to resume has been printed.
    """
    args = _parser().parse_args(argv)
    sweep = read_sweep(args.file)
    search, count = make_search(sweep), args.count or sweep.run_cap
    if count is None and sweep.method != "grid":
        raise ConfigError(f"a {sweep.method} search does not end by itself: give --count, or run_cap in {args.file}")
    if args.dry_run:
        _print_commands(sweep, search, count)
        return
    records = Records(args.output or Path("runs/sweeps") / sweep.name)
    _require_program(sweep, args.file)
    require_writable(records.folder / "results.csv", "--output")
    require_writable(records.path(1, ".log"), "--output")
    with alone(records.folder), _termination_as_interrupt(), _told_how_to_go_on(argv):
        trials = records.read()
        if trials and not (args.resume or args.retry_failed):
            raise ConfigError(
                f"{records.folder} has {len(trials)} trials: give --resume to continue, or another --output"
            )
        changed = records.keep_definition(sweep)
        if trials and changed:
            print(f"{args.file} has changed since these trials were made: {', '.join(changed)}", flush=True)
        again = [trial for trial in trials if trial.state not in _OVER or (args.retry_failed and _failed(trial))]
        try:
            _run(sweep, search, count, records, trials, again)
        finally:
            ranking = _report(sweep, records)
    _end_in_failure(args.file, sweep, [trial for trial, _ in ranking])


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Make SIGTERM and a closed terminal end a sweep like Ctrl-C, which ends the trial's processes and records it."""
    kinds = [kind for kind in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(kind) == signal.SIG_DFL]  # not nohup
    for kind in kinds:
        signal.signal(kind, _interrupt)
    try:
        yield
    finally:
        for kind in kinds:
            signal.signal(kind, signal.SIG_DFL)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _told_how_to_go_on(argv: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        arguments = [*argv, *([] if "--resume" in argv else ["--resume"])]
        print(f"to resume: {shlex.join(['cm-lightning', 'sweep', *arguments])}", flush=True)
        raise


def _require_program(sweep: Sweep, file: Path) -> None:
    program, *_ = sweep.command_line({}) or [""]
    if shutil.which(program, path=search_path()) is None:
        raise ConfigError(f"{file}: command begins with {program!r}, which is not a program on PATH: correct it")


def _failed(trial: Trial) -> bool:
    return trial.state == "failed"


def _run(
    sweep: Sweep, search: Search, count: int | None, records: Records, trials: list[Trial], again: list[Trial]
) -> None:
    while again or count is None or len(trials) < count:
        where = progress(search, trials, count, len(again))
        if again:
            old = again.pop(0)
            trial = trials[trials.index(old)] = Trial(old.number, old.values)
        else:
            if done := next((trial for trial in trials if sweep.reached(trial.score(sweep.metric))), None):
                print(f"trial {done.number} has reached metric.target, {sweep.target}: no more trials", flush=True)
                return
            values = search.propose(trials)
            if values is None:
                return
            trial = Trial(max((other.number for other in trials), default=0) + 1, values)
            trials.append(trial)
        print(f"trial {trial.number}{where}: {trial.values}", flush=True)
        run_trial(sweep, trial, records, lambda running: search.to_stop(running, trials))
        print(f"trial {trial.number}: {trial.state} after {trial.seconds:.0f} s", flush=True)
        if _failed(trial):
            log = records.path(trial.number, ".log")
            print(f"  {failure_in(log)}  ({log})", flush=True)
        elif sweep.metric and not trial.history(sweep.metric):
            print(f"  it did not log {sweep.metric}, which ranks the trials", flush=True)


def _print_commands(sweep: Sweep, search: Search, count: int | None) -> None:
    trials: list[Trial] = []
    while (count is None or len(trials) < count) and (values := search.propose(trials)) is not None:
        trials.append(Trial(len(trials) + 1, values, state="finished"))
        print(shlex.join(sweep.command_line(values)))


def _report(sweep: Sweep, records: Records) -> list[tuple[Trial, float | None]]:
    ranking = records.write_results(sweep)
    for trial, score in ranking:
        shown = "-" if score is None else format(score, ".4g")
        print(f"{shown:>10}  trial {trial.number} ({trial.state}) {trial.values}")
    print(f"{len(ranking)} trials: {records.folder / 'results.csv'}", flush=True)
    return ranking


def _end_in_failure(file: Path, sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Report failures of the sweep as a whole, and exit with status 1; return if there are none."""
    said = [_of_failures(trials), _of_metric(file, sweep.metric, trials)]
    if any(said):
        sys.stderr.writelines(f"error: {line}\n" for line in said if line)
        raise SystemExit(1)


def _of_failures(trials: Sequence[Trial]) -> str | None:
    failed = [str(trial.number) for trial in trials if _failed(trial)]
    if not failed:
        return None
    return f"{len(failed)} of {len(trials)} trials failed ({', '.join(failed)}): --retry_failed runs them again"


def _of_metric(file: Path, metric: str | None, trials: Sequence[Trial]) -> str | None:
    if metric is None or all(map(_failed, trials)) or any(trial.history(metric) for trial in trials):
        return None
    logged = sorted(set().union(*(trial.logged() for trial in trials)))
    names = f"{near(metric, logged)}; they logged {', '.join(logged) or 'nothing'}"
    return f"no trial logged {metric}{names}: correct metric.name in {file}, and --resume ranks them again"
