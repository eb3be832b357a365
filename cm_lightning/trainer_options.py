"""The domains of the Trainer's numeric options, which Lightning accepts, or divides by, without a check."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cm_lightning.domains import COUNT, NATURAL, NON_NEGATIVE, Domain
from cm_lightning.errors import ConfigError

_FROM_MINUS_ONE = Domain("-1 (no limit) or a whole number of at least 0", lambda value: value >= -1, whole=True)
_LENGTH = Domain("-1 (no limit) or a whole number of at least 1", lambda value: value == -1 or value >= 1, whole=True)
_PART = Domain("a whole number, or a part in [0, 1]", lambda value: 0 <= value <= 1 or value % 1 == 0 <= value)
_INTERVAL = Domain("a whole number, or a part of an epoch in (0, 1]", lambda value: value > 0 and value in _PART)

_DOMAINS = {
    "max_steps": _LENGTH,
    "min_steps": NATURAL,
    "max_epochs": _LENGTH,
    "min_epochs": NATURAL,
    "val_check_interval": _INTERVAL,
    "check_val_every_n_epoch": COUNT,
    "log_every_n_steps": NATURAL,
    "num_sanity_val_steps": _FROM_MINUS_ONE,
    "accumulate_grad_batches": COUNT,
    "gradient_clip_val": NON_NEGATIVE,
    "num_nodes": COUNT,
    "reload_dataloaders_every_n_epochs": NATURAL,
    "overfit_batches": _PART,
    "limit_train_batches": _PART,
    "limit_val_batches": _PART,
    "limit_test_batches": _PART,
    "limit_predict_batches": _PART,
}
_DEVICES = Domain("-1 (all) or a whole number of at least 1", lambda value: value == -1 or value >= 1, whole=True)


def check_trainer(options: Mapping[str, Any], prefix: str = "trainer") -> None:
    """Raise ConfigError for the first number that is out of range, with its name on the command line."""
    for name, domain in _DOMAINS.items():
        if options.get(name) is not None:
            domain.check(**{f"{prefix}.{name}": options[name]})
    devices = options.get("devices")
    if isinstance(devices, int) or (isinstance(devices, str) and devices.lstrip("-").isdigit()):
        _DEVICES.check(**{f"{prefix}.devices": int(devices)})


#: The variables by which a program tells its processes how many there are: in all, and on each machine.
_STARTERS = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
}


def require_one_run(ranks: int) -> None:
    """Raise ConfigError if more processes were started than the Trainer has ranks, so that each would train alone.

    Args:
        ranks: the Trainer's ranks.
    """
    for program, (mark, all_processes, of_a_machine) in _STARTERS.items():
        if mark not in os.environ or not (started := os.environ.get(all_processes, "")).isdigit():
            continue
        if int(started) > 1 and ranks == 1:
            devices = os.environ.get(of_a_machine, started).partition("(")[0]
            raise ConfigError(
                f"{program} started {started} processes, and each would train alone: give --trainer.strategy ddp "
                f"--trainer.devices {devices} --trainer.num_nodes {-(-int(started) // int(devices))}, or start one"
            )
