"""Which parameters a sweep tries next."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any

from cm_lightning.errors import ConfigError
from cm_lightning.sweep.definition import Sweep, Values

if TYPE_CHECKING:
    from cm_lightning.sweep.trials import Trial


class Search(ABC):
    """Proposes trials one after the other."""

    @abstractmethod
    def propose(self, trials: Sequence[Trial]) -> Values | None:
        """The parameters of the trial after these; None when there is nothing left to try."""

    def to_stop(self, trial: Trial, trials: Sequence[Trial]) -> bool:
        """Whether to end the running trial early."""
        return False


def make_search(sweep: Sweep) -> Search:
    """Grid and random are our own; bayes and early termination are W&B's engine.

    Raises:
        ConfigError: an unknown method or distribution, or an engine that is not installed.
    """
    if sweep.method == "grid" and not sweep.early_terminate:
        return Grid(sweep)
    if sweep.method == "random" and not sweep.early_terminate:
        return Random(sweep)
    if sweep.method in ("grid", "random", "bayes"):
        return Engine(sweep)
    raise ConfigError(f"method {sweep.method!r} of sweep {sweep.name}: choose grid, random or bayes")


class Grid(Search):
    """All combinations, in the order of the parameters' names."""

    def __init__(self, sweep: Sweep) -> None:
        for name, parameter in sweep.parameters.items():
            if not {"value", "values"} & set(parameter):
                raise ConfigError(f"parameter {name} of a grid needs value or values")
        choices = [p["values"] if "values" in p else [p["value"]] for p in sweep.parameters.values()]
        self.combinations = [dict(zip(sweep.parameters, chosen, strict=True)) for chosen in product(*choices)]

    def propose(self, trials: Sequence[Trial]) -> Values | None:
        tried = [trial.values for trial in trials]  # by value: the file may have changed since
        return next((values for values in self.combinations if values not in tried), None)


class Random(Search):
    """Independent draws; trial number n of a sweep is always the same."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.propose([])  # says at once what distribution it does not know

    def propose(self, trials: Sequence[Trial]) -> Values | None:
        generator = random.Random(f"{self.sweep.name} {len(trials)}")
        return {name: _draw(name, parameter, generator) for name, parameter in self.sweep.parameters.items()}


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
        if not sweep.metric:
            raise ConfigError(f"sweep {sweep.name}: bayes and early_terminate need metric.name")
        self.sweep = sweep
        self.definition = {**sweep.raw, "metric": {"goal": "minimize", **sweep.raw["metric"]}}

    def propose(self, trials: Sequence[Trial]) -> Values | None:
        run = self.next_run(self.definition, [self._run(trial) for trial in trials])
        return None if run is None else {name: entry["value"] for name, entry in sorted(run.config.items())}

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


def _draw(name: str, parameter: Mapping[str, Any], generator: random.Random) -> Any:
    if "value" in parameter:
        return parameter["value"]
    if "values" in parameter:
        return generator.choices(parameter["values"], parameter.get("probabilities"))[0]
    low, high, q = (parameter.get(key, default) for key, default in (("min", None), ("max", None), ("q", 1)))
    whole = isinstance(low, int) and isinstance(high, int)
    draws: dict[str, Callable[[], Any]] = {
        "int_uniform": lambda: generator.randint(low, high),
        "uniform": lambda: generator.uniform(low, high),
        "q_uniform": lambda: round(generator.uniform(low, high) / q) * q,
        "log_uniform_values": lambda: math.exp(generator.uniform(math.log(low), math.log(high))),
        "normal": lambda: generator.gauss(parameter.get("mu", 0.0), parameter.get("sigma", 1.0)),
    }
    try:
        return draws[parameter.get("distribution", "int_uniform" if whole else "uniform")]()
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"parameter {name}: {dict(parameter)} cannot be drawn: give value, values, or min and max with "
            f"distribution {', '.join(draws)}"
        ) from error
