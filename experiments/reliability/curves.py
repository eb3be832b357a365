"""Runs that are killed at random moments and resumed: their curves and final states are those of the uninterrupted run.

    python experiments/reliability/curves.py               100 runs
    python experiments/reliability/curves.py --seed 17     that run alone

Each run is killed at one or two random calls of a function, in Python or C, between the beginning and the end of
training, and resumed with ``--ckpt_path last`` until it is finished. The joined rows of its attempts must be those of
the uninterrupted run, except for times; the last checkpoints must be equal to the bit.
"""

from __future__ import annotations

import csv
import math
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
import yaml
from trainings import KILLED, RUN, chosen_seeds, last, train

from cm_lightning.checkpoint import read_checkpoint

TIMES = ("train/images_per_s", "train/seconds")
#: The part of a checkpoint that determines how training continues.
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step", "trained_steps", "epoch")
#: Files of the suite and of Lightning, and what happens while one of their functions runs.
PLACES = {
    "checkpoint_io.py": "a checkpoint was written",
    "rows.py": "rows were written",
    "evaluation_loop.py": "the run validated",
    "run_directory.py": "the run's directory was made",
    "training_epoch_loop.py": "a step was taken",
}
ELSEWHERE = "training began or ended"


class Calls:
    """Counts the calls of functions within ``Trainer.fit`` and kills the process at one of them.

    Args:
        fatal: number of the call; 0 for none.
    """

    def __init__(self, fatal: int = 0) -> None:
        self.fatal, self.number = fatal, 0

    def begin(self) -> None:
        """Count from the beginning of training."""
        fit = L.Trainer.fit

        @wraps(fit)  # the command line reads its signature and description
        def counted(*args: Any, **options: Any) -> None:
            sys.setprofile(self._count)
            fit(*args, **options)
            sys.setprofile(None)
            Path("calls.txt").write_text(str(self.number))

        L.Trainer.fit = counted  # type: ignore[method-assign]

    def _count(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "c_call"):
            return
        self.number += 1
        if self.number == self.fatal:
            with open("moments.txt", "a") as file:
                file.write(f"{_place(frame)}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def _place(frame: FrameType | None) -> str:
    """What the run did in a frame."""
    while frame is not None:
        if place := PLACES.get(Path(frame.f_code.co_filename).name):
            return place
        frame = frame.f_back
    return ELSEWHERE


def curve(version: Path, before: float = math.inf) -> list[tuple[int, str, str]]:
    """The values that a run and those that it resumed have logged before a step, as (step, name, value)."""
    with open(version / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    own = [
        (int(row["step"]), name, value)
        for row in rows
        if int(row["step"]) < before
        for name, value in row.items()
        if value and name not in ("step", *TIMES)
    ]
    resumed = yaml.safe_load((version / "config.yaml").read_text())["ckpt_path"]
    if resumed is None:
        return sorted(own)
    path = version.parents[2] / resumed
    return sorted([*curve(path.parents[1], min(before, read_checkpoint(path)["trained_steps"])), *own])


def state(version: Path) -> dict[str, Any]:
    """The last checkpoint of a run, without counts of loops and times."""
    checkpoint = read_checkpoint(version / "checkpoints/last.ckpt")
    averages = {key: part["average"] for key, part in checkpoint["callbacks"].items() if "average" in part}
    return {"averages": averages, **{name: checkpoint[name] for name in STATE}}


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def killed(folder: Path, seed: int, calls: int) -> Path:
    """Kill a run in a folder once or twice, and resume it to its end; return the version that reached the end.

    Raises:
        RuntimeError: an attempt ended neither killed nor finished.
    """
    draw = random.Random(seed)
    fatal = [draw.randint(1, calls) for _ in range(draw.randint(1, 2))]
    while True:
        options = ["--ckpt_path=last"] if last(folder) else []
        status = train(folder, *options, prepare=Calls(fatal.pop(0) if fatal else 0).begin)
        if status == 0 and (folder / "moments.txt").exists():
            break
        if status == 0:  # it made fewer calls than the whole run, so it was not killed
            shutil.rmtree(folder)
            fatal = [draw.randint(1, calls)]
            continue
        if status != KILLED:
            raise RuntimeError(f"exit status {status}: {(folder / 'said.txt').read_text()[-300:]}")
    found = last(folder)
    assert found is not None
    return found.parents[1]


def problem(whole: Path, folder: Path, seed: int, calls: int) -> str:
    """How a killed run differs from the uninterrupted one; "" if it does not."""
    try:
        version = killed(folder, seed, calls)
        rows, expected = curve(version), curve(whole)
    except (RuntimeError, OSError) as error:
        return str(error)
    if rows != expected:
        missing, doubled = Counter(expected) - Counter(rows), Counter(rows) - Counter(expected)
        return f"rows: missing {sorted(missing)[:4]}, left over {sorted(doubled)[:4]}"
    own, due = state(version), state(whole)
    differ = [name for name in due if not equal(own[name], due[name])]
    return f"{', '.join(differ)} of the last checkpoint" if differ else ""


def run(seeds: range) -> int:
    """Compare a killed run for each seed; return the number of runs that differ."""
    moments: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if train(folder / "whole", prepare=Calls().begin):
            sys.exit((folder / "whole/said.txt").read_text())
        calls = int((folder / "whole/calls.txt").read_text())
        for seed in seeds:
            said = problem(folder / "whole" / RUN / "version_0", folder / str(seed), seed, calls)
            at = (folder / str(seed) / "moments.txt").read_text().splitlines()
            moments.update(at)
            if said:
                failed += 1
                print(f"seed {seed}, killed while {', then while '.join(at)}: {said}", flush=True)
    print(f"{moments.total()} kills among {calls} calls:")
    for place, count in moments.most_common():
        print(f"  {count} while {place}")
    print(f"{len(seeds) - failed} of {len(seeds)} killed and resumed runs equal the uninterrupted one")
    return failed


if __name__ == "__main__":
    sys.exit(1 if run(chosen_seeds(__doc__, 100)) else 0)
