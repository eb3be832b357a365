"""Lightning's callbacks that do not go together with the trainings of this suite."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import callbacks as theirs

from cm_lightning.errors import ConfigError

_REASONS = {
    theirs.LearningRateFinder: "needs a module with an attribute lr, and here the optimizer has the rate: set "
    "--model.optimizer.lr, or try several with cm-lightning sweep",
    theirs.BatchSizeFinder: "trains before the training, which would not begin at its first step: set "
    "--data.batch_size; --dry_run tells the memory it takes",
    theirs.StochasticWeightAveraging: "puts other weights and rates in place of the method's: use the callback EMA",
    theirs.GradientAccumulationScheduler: "changes the images of a step on the way, so that no run could be resumed: "
    "set --trainer.accumulate_grad_batches",
}


def refuse_unsuitable(callbacks: Iterable[tuple[str, object]]) -> None:
    """Raise ConfigError for the first callback of those, by the option that it is from."""
    for option, callback in callbacks:
        for kind, reason in _REASONS.items():
            if isinstance(callback, kind):
                raise ConfigError(f"{option}: {kind.__name__} {reason}")
