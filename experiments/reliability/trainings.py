"""Training runs as real processes to be killed: forks of this one, which has already imported the suite."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from cm_lightning.cli import main
from cm_lightning.errors import CheckpointError
from cm_lightning.run import last_checkpoint

CONFIG = Path(__file__).parent / "toy.yaml"
RUN = Path("runs/toy")
KILLED = -signal.SIGKILL


def chosen_seeds(description: str | None, runs: int) -> range:
    """The seeds that the command line selects: those of ``--runs``, or ``--seed`` alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--seed", type=int, help="repeat this seed alone")
    args = parser.parse_args()
    return range(args.runs) if args.seed is None else range(args.seed, args.seed + 1)


def train(folder: Path, *options: str, prepare: Callable[[], None] = lambda: None) -> int:
    """Run ``cm-lightning fit`` in a folder, as a separate process; its output is appended to ``said.txt`` there.

    Args:
        folder: the working folder, which is made.
        options: options after the configuration.
        prepare: called in the new process before it begins.

    Returns:
        The exit status; -9 if the process was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gc.freeze()  # else each process would walk through all that was imported
    process = multiprocessing.get_context("fork").Process(target=_train, args=(folder, options, prepare))
    process.start()
    process.join()
    return process.exitcode or 0


def last(folder: Path) -> Path | None:
    """The checkpoint that ``--ckpt_path last`` refers to in a folder; None if there is none."""
    try:
        return last_checkpoint(folder / RUN)
    except CheckpointError:
        return None


def _train(folder: Path, options: tuple[str, ...], prepare: Callable[[], None]) -> None:
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = ["cm-lightning"]
    prepare()
    main(["fit", f"--config={CONFIG}", *options])
