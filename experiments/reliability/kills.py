"""Runs that are killed while they write ``last.ckpt``: the checkpoint that ``last`` refers to is complete each time.

    python experiments/reliability/kills.py                20 kills
    python experiments/reliability/kills.py --seed 7       that kill alone

Each run is killed by SIGKILL when a random number of bytes of a random checkpoint, the second or a later one, is in
the file. Then ``last`` must be the previous checkpoint, with valid checksums and finite weights; a run that resumes
from it must reach its end, and what the killed process left behind must be gone.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

from trainings import KILLED, RUN, chosen_seeds, last, train

from cm_lightning import checkpoint_io
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.errors import CheckpointError
from cm_lightning.states import are_finite

STEPS, EVERY = 12, 3
WIDE = "--model.backbone.width=256"  # checkpoints of several MiB, which take many writes


class Writes:
    """Kills the process within one of its writes of a checkpoint.

    Args:
        fatal: number of the checkpoint, from 0.
        size: size of the file, in bytes, at which the process is killed.
    """

    def __init__(self, fatal: int, size: int) -> None:
        self.fatal, self.size, self.number = fatal, size, 0

    def begin(self) -> None:
        """Replace the function that opens checkpoints."""
        checkpoint_io.open = self._open  # type: ignore[attr-defined]

    def _open(self, path: Path, mode: str) -> io.FileIO:
        self.number += 1
        return _Fatal(path, self.size) if self.number == self.fatal + 1 else io.FileIO(path, mode)


class _Fatal(io.FileIO):
    """A file that kills the process when it reaches a certain size."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, "w")
        self.size = size

    def write(self, data: object) -> int:
        content = memoryview(data).cast("B")  # type: ignore[arg-type]
        if self.tell() + len(content) >= self.size:
            super().write(content[: self.size - self.tell()])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(content)


def problem(folder: Path, number: int, size: int) -> str:
    """What is wrong after a kill at a size of checkpoint ``number``; "" if nothing is wrong."""
    status = train(folder, WIDE, prepare=Writes(number, size).begin)
    if status != KILLED:
        return f"the run ended with status {status}"
    parts = [path.stat().st_size for path in (folder / RUN).rglob(".last.*")]
    if parts != [size]:
        return f"it was not killed in mid-write: parts of {parts} bytes"
    return _problem_of_last(folder, EVERY * number) or _problem_of_the_rest(folder)


def _problem_of_last(folder: Path, step: int) -> str:
    path = last(folder)
    if path is None:
        return "the checkpoint is missing"
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    if found["global_step"] != step or not are_finite(found["state_dict"].values()):
        return f"{path} is of step {found['global_step']}, not {step}, or its weights are not finite"
    return ""


def _problem_of_the_rest(folder: Path) -> str:
    status = train(folder, WIDE, "--ckpt_path=last")
    end = last(folder)
    if status or end is None or read_checkpoint(end)["global_step"] != STEPS:
        return f"the resumed run ended with status {status}"
    return "a part of a file is left over" if [*(folder / RUN).rglob(".last.*")] else ""


def run(seeds: range) -> int:
    """Kill a run for each seed; return the number of kills after which something was wrong."""
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if train(folder / "whole", WIDE):
            sys.exit((folder / "whole/said.txt").read_text())
        whole = last(folder / "whole")
        assert whole is not None
        bytes_ = whole.stat().st_size
        for seed in seeds:
            draw = random.Random(seed)
            number, size = draw.randint(1, STEPS // EVERY - 1), draw.randint(0, bytes_ - 1)
            said = problem(folder / str(seed), number, size)
            if said:
                failed += 1
                print(f"seed {seed}, killed at byte {size} of checkpoint {number}: {said}", flush=True)
    print(f"{len(seeds) - failed} of {len(seeds)} kills in mid-write of {bytes_:,} bytes left a checkpoint that loads")
    return failed


if __name__ == "__main__":
    sys.exit(1 if run(chosen_seeds(__doc__, 20)) else 0)
