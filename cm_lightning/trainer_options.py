"""What Lightning's Trainer takes without a look, and these trainings do not bear: numbers, and callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import callbacks as theirs

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
#: Callbacks of Lightning's that do not go together with these trainings.
_REASONS = {
    theirs.LearningRateFinder: "needs a module with an attribute lr, and here the optimizer has the rate: set "
    "--model.optimizer.lr, or try several with cm-lightning sweep",
    theirs.BatchSizeFinder: "trains before the training, which would not begin at its first step: set "
    "--data.batch_size; --dry_run tells the memory it takes",
    theirs.StochasticWeightAveraging: "puts other weights and rates in place of the method's: use the callback EMA",
    theirs.GradientAccumulationScheduler: "changes the images of a step on the way, so that no run could be resumed: "
    "set --trainer.accumulate_grad_batches",
}


def check_trainer(options: Mapping[str, Any], prefix: str = "trainer") -> None:
    """Raise ConfigError for the first number that means nothing, by its name on the command line."""
    for name, domain in _DOMAINS.items():
        if options.get(name) is not None:
            domain.check(**{f"{prefix}.{name}": options[name]})
    devices = options.get("devices")
    if isinstance(devices, int) or (isinstance(devices, str) and devices.lstrip("-").isdigit()):
        _DEVICES.check(**{f"{prefix}.devices": int(devices)})


def refuse_unsuitable(callbacks: Iterable[object]) -> None:
    """Raise ConfigError for the first callback that does not go together with these trainings."""
    for callback in callbacks:
        for kind, reason in _REASONS.items():
            if isinstance(callback, kind):
                raise ConfigError(f"trainer.callbacks: {kind.__name__} {reason}")
