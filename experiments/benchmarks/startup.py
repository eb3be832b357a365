"""The time until a command does its work, measured on whole processes: each command is started in interleaved rounds.

    python experiments/benchmarks/startup.py CHECKPOINT [--rounds 5]

`sample` draws one image; `fit` ends after its first step, without evaluation. Importing torch alone is the least that
any command could take.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "mnist" / "ct.yaml"
_SUITE = [sys.executable, "-m", "cm_lightning"]


def commands(checkpoint: Path, folder: str) -> dict[str, list[str]]:
    """The commands to time, by their names in the table."""
    fit = [
        "fit", f"--config={RECIPE}", "--trainer.max_steps=1", "--trainer.limit_val_batches=0",
        f"--trainer.logger.save_dir={folder}", "--callbacks.samples=null", "--callbacks.quality=null",
    ]  # fmt: skip
    sample = ["sample", f"--ckpt_path={checkpoint}", "--num_samples=1", f"--output={folder}/one.png"]
    return {
        "`import torch`": [sys.executable, "-c", "import torch"],
        "`cm-lightning --help`": [*_SUITE, "--help"],
        "`cm-lightning sample` of one image": [*_SUITE, *sample],
        "`cm-lightning fit`, one step": [*_SUITE, *fit],
        "`cm-lightning fit --dry_run`": [*_SUITE, *fit, "--dry_run"],
    }


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        timed = commands(args.checkpoint.resolve(), folder)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for round_ in range(args.rounds + 1):
            for name, command in timed.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=folder)
                if round_ > 0:  # the first round fills the caches of the disk
                    seconds[name].append(time.perf_counter() - start)
    print("| command | seconds | least and most |\n|---|---|---|")
    for name, found in seconds.items():
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f}, {max(found):.2f} |")


if __name__ == "__main__":
    main()
