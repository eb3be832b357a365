"""SLURM jobs that are queued again: how a run requests this, and which run such a job resumes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from cm_lightning.lock import Owner
from cm_lightning.run import last_checkpoint, version_number


def requeue_signals(trainer: L.Trainer) -> list[int]:
    """The signal that SLURM sends before a job's time is up if the Trainer is to queue the job again."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return [int(environment.requeue_signal or signal.SIGUSR1)]
    return []


@rank_zero_only  # type: ignore[untyped-decorator]
def requeue() -> None:
    """Ask SLURM to queue this job again, as Lightning does at that signal."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"[\w-]+", job):
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"scontrol requeue {job} failed ({error}): queue the job again by hand")


def begun_by_this_job(root: Path) -> Path | None:
    """The checkpoint of the run that this command began in this job, if SLURM has queued the job again.

    Args:
        root: ``runs/NAME``, which holds the versions.
    """
    job, command = os.environ.get("SLURM_JOB_ID"), shlex.join(sys.argv[1:])
    if not job or not int(os.environ.get("SLURM_RESTART_COUNT") or 0) or not root.is_dir():
        return None
    owners = {path: Owner.of(path) for path in root.iterdir() if any(path.glob("checkpoints/*.ckpt"))}
    begun = [path for path, owner in owners.items() if owner and (owner.job, owner.command) == (job, command)]
    if not begun:
        return None
    checkpoint = last_checkpoint(max(begun, key=lambda path: version_number(path) or -1))
    rank_zero_info(f"job {job} was queued again: it resumes {checkpoint}")
    return checkpoint
