"""Lightning's callbacks that do not work with the training of this suite."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import callbacks as theirs

from cm_lightning.errors import ConfigError

_REASONS = {
    theirs.LearningRateFinder: "needs a module with an attribute lr, but here the optimizer holds the rate: set "
    "--model.optimizer.lr, or try several with cm-lightning sweep",
    theirs.BatchSizeFinder: "trains before the run, which would then not begin at its first step: set "
    "--data.batch_size; --dry_run estimates its memory",
    theirs.StochasticWeightAveraging: "replaces the weights and rates of the method: use the callback EMA",
    theirs.WeightAveraging: "averages all networks of a method, also those that follow the trained one or compete with "
    "it: use the callback EMA",
    theirs.GradientAccumulationScheduler: "changes the images per step during a run, which could then not be "
    "resumed: set --trainer.accumulate_grad_batches",
}


def refuse_unsuitable(callbacks: Iterable[tuple[str, object]]) -> None:
    """Raise ConfigError for the first of these callbacks, naming the option that it comes from."""
    for option, callback in callbacks:
        for kind, reason in _REASONS.items():
            if isinstance(callback, kind):
                raise ConfigError(f"{option}: {kind.__name__} {reason}")
