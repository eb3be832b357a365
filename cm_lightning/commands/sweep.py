"""``cm-lightning sweep``: run a W&B sweep file on this machine, without an account or a server."""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from cm_lightning.errors import ConfigError
from cm_lightning.sweep.definition import Sweep, read_sweep
from cm_lightning.sweep.search import Search, make_search
from cm_lightning.sweep.trials import Records, Trial, run_trial

_OVER = ("finished", "stopped", "failed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cm-lightning sweep",
        description="Run a W&B sweep file on this machine, a process a trial; 'wandb sweep' takes the same file.",
    )
    parser.add_argument("file", type=Path, help="sweeps/mnist_cd_vs_ct.yaml")
    parser.add_argument("--count", type=int, help="at most so many trials in all; default: run_cap, or the whole grid")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--resume", action="store_true", help="go on with a sweep: finished trials are kept")
    parser.add_argument("--output", type=Path, help="default: runs/sweeps/NAME")
    return parser


def main(argv: Sequence[str]) -> None:
    """Propose, run, record, rank."""
    args = _parser().parse_args(argv)
    sweep = read_sweep(args.file)
    search, count = make_search(sweep), args.count or sweep.run_cap
    if count is None and sweep.method != "grid":
        raise ConfigError(f"a {sweep.method} search has no end: give --count, or run_cap in {args.file}")
    if args.dry_run:
        _print_commands(sweep, search, count)
        return
    records = Records(args.output or Path("runs/sweeps") / sweep.name)
    trials = records.read()
    if trials and not args.resume:
        raise ConfigError(f"{records.folder} has {len(trials)} trials: give --resume to go on, or another --output")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _run(sweep, search, count, records, trials)
    finally:
        _report(sweep, records)


def _interrupt(*_: object) -> None:
    """A plain kill ends a sweep as Ctrl-C does: with the trial's processes, and its record."""
    raise KeyboardInterrupt


def _run(sweep: Sweep, search: Search, count: int | None, records: Records, trials: list[Trial]) -> None:
    again = [trial for trial in trials if trial.state not in _OVER]
    while again or count is None or len(trials) < count:
        if again:
            old = again.pop(0)
            trial = trials[old.number - 1] = Trial(old.number, old.values)
        else:
            values = search.propose(trials)
            if values is None:
                return
            trial = Trial(len(trials) + 1, values)
            trials.append(trial)
        print(f"trial {trial.number}: {trial.values}", flush=True)
        run_trial(sweep, trial, records, lambda running: search.to_stop(running, trials))
        print(f"trial {trial.number}: {trial.state} after {trial.seconds:.0f} s", flush=True)
        if trial.state == "failed":
            log = records.path(trial.number, ".log")
            lines = log.read_text(errors="replace").strip().splitlines()
            print(f"  {lines[-1] if lines else 'no output'}  ({log})", flush=True)


def _print_commands(sweep: Sweep, search: Search, count: int | None) -> None:
    trials: list[Trial] = []
    while (count is None or len(trials) < count) and (values := search.propose(trials)) is not None:
        trials.append(Trial(len(trials) + 1, values, state="finished"))
        print(shlex.join(sweep.command_line(values)))


def _report(sweep: Sweep, records: Records) -> None:
    ranking = records.write_results(sweep)
    for trial, score in ranking:
        shown = "-" if score is None else format(score, ".4g")
        print(f"{shown:>10}  trial {trial.number} ({trial.state}) {trial.values}")
    print(f"{len(ranking)} trials: {records.folder / 'results.csv'}")
