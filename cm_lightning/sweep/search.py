"""The search of a sweep, which decides what parameters to try next."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any

from cm_lightning.errors import ConfigError
from cm_lightning.sweep.command import Values
from cm_lightning.sweep.definition import Sweep
from cm_lightning.sweep.parameters import draw

if TYPE_CHECKING:
    from cm_lightning.sweep.trials import Trial


class Search(ABC):
    """Proposes trials one after the other."""

    @abstractmethod
    def propose(self, trials: Sequence[Trial]) -> Values | None:
        """The parameters of the next trial after these; None if nothing is left to try."""

    def left(self, trials: Sequence[Trial]) -> int | None:
        """The number of trials left after these; None if the search does not end."""
        return None

    def to_stop(self, trial: Trial, trials: Sequence[Trial]) -> bool:
        """Whether to end the running trial early."""
        return False


def make_search(sweep: Sweep) -> Search:
    """Make the search of a sweep: grid and random of this suite, or W&B's engine for bayes and early termination.

    Raises:
        ConfigError: the engine is not installed.
    """
    if sweep.early_terminate or sweep.method == "bayes":
        return Engine(sweep)
    return Grid(sweep) if sweep.method == "grid" else Random(sweep)


class Grid(Search):
    """All combinations in the order of the file; its last parameter changes from each trial to the next."""

    def __init__(self, sweep: Sweep) -> None:
        choices = [p["values"] if "values" in p else [p["value"]] for p in sweep.parameters.values()]
        combinations = [dict(zip(sweep.parameters, chosen, strict=True)) for chosen in product(*choices)]
        self._by_key = {_key(values): values for values in combinations}
        self.combinations = list(self._by_key.values())

    def propose(self, trials: Sequence[Trial]) -> Values | None:
        return next(iter(self._untried(trials)), None)

    def left(self, trials: Sequence[Trial]) -> int | None:
        return len(self._untried(trials))

    def _untried(self, trials: Sequence[Trial]) -> list[Values]:
        tried = {_key(trial.values) for trial in trials}  # by value, because the file may have changed since
        return [values for key, values in self._by_key.items() if key not in tried]


def _key(values: Values) -> str:
    """Values as text, in which 1, 1.0 and true differ, and NaN equals NaN; the order of the file does not matter."""
    return repr(sorted(values.items()))


class Random(Search):
    """Independent draws; trial number n of a sweep is always the same."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.propose([])  # parameters that cannot be drawn fail before anything runs

    def propose(self, trials: Sequence[Trial]) -> Values | None:
        drawn = max([len(trials), *(trial.number for trial in trials)])  # a record between may have been removed
        generator = random.Random(f"{self.sweep.name} {drawn}")
        return {name: self._draw(name, generator) for name in sorted(self.sweep.parameters)}

    def _draw(self, name: str, generator: random.Random) -> Any:
        try:
            return draw(self.sweep.parameters[name], generator)
        except OverflowError as error:
            raise ConfigError(f"parameter {name}: its draws are too large for a number: correct its bounds") from error


class Engine(Search):
    """W&B's own search, from the package ``sweeps``."""

    def __init__(self, sweep: Sweep) -> None:
        try:
            engine = import_module("sweeps")
            self.run_of, self.next_run, self.stop_runs = engine.SweepRun, engine.next_run, engine.stop_runs
        except (ImportError, AttributeError) as error:  # a folder named sweeps imports as an empty package
            raise ConfigError(
                f"sweep {sweep.name}: bayes and early_terminate are W&B's engine: pip install 'cm-lightning[sweeps]'"
            ) from error
        self.sweep = sweep
        self.grid = Grid(sweep) if sweep.method == "grid" else None
        self.definition = {**sweep.raw, "metric": {"goal": "minimize", **sweep.raw["metric"]}}

    def propose(self, trials: Sequence[Trial]) -> Values | None:
        run = self.next_run(self.definition, [self._run(trial) for trial in trials])
        return None if run is None else {name: entry["value"] for name, entry in sorted(run.config.items())}

    def left(self, trials: Sequence[Trial]) -> int | None:
        return self.grid.left(trials) if self.grid else None

    def to_stop(self, trial: Trial, trials: Sequence[Trial]) -> bool:
        if not self.sweep.early_terminate:
            return False
        runs = [self._run(other) for other in trials]
        return any(run.name == str(trial.number) for run in self.stop_runs(self.definition, runs))

    def _run(self, trial: Trial) -> Any:
        name, history = str(self.sweep.metric), trial.history(str(self.sweep.metric))
        return self.run_of(
            name=str(trial.number),
            state="running" if trial.state == "running" else "finished" if trial.state == "finished" else "crashed",
            config={key: {"value": value} for key, value in trial.values.items()},
            history=[{name: value} for value in history],
            summary_metrics={name: history[-1]} if history else {},
        )
