"""A sweep file in W&B's YAML format, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm_lightning.domains import COUNT, FINITE, Domain
from cm_lightning.errors import ConfigError
from cm_lightning.sweep.command import Values, check_command, command_line
from cm_lightning.sweep.file import read_mapping, require_choice, require_keys
from cm_lightning.sweep.parameters import check_parameter

_METHODS = ("grid", "random", "bayes")
_GOALS = ("minimize", "maximize")
#: The keys that W&B reads; some concern only its server.
_KEYS = (
    "name", "method", "metric", "parameters", "command", "program", "run_cap", "early_terminate", "project", "entity",
    "description", "controller", "job", "image_uri", "launch", "scheduler", "apiVersion", "kind",
)  # fmt: skip
_METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
_HYPERBAND = {
    "min_iter": COUNT,
    "max_iter": COUNT,
    "s": COUNT,
    "eta": Domain("a finite number above 1", lambda value: value > 1),
}


@dataclass(frozen=True)
class Sweep:
    """The contents of the file; ``raw`` holds all of it, with numeric text converted to numbers."""

    name: str
    method: str
    parameters: Mapping[str, Mapping[str, Any]]
    metric: str | None
    minimize: bool
    target: float | None
    command: list[str]
    program: str | None
    run_cap: int | None
    early_terminate: Mapping[str, Any] | None
    raw: Mapping[str, Any] = field(repr=False)

    def reached(self, score: float | None) -> bool:
        """Whether a score of the metric is at least as good as the target; False without a target."""
        if score is None or self.target is None:
            return False
        return score <= self.target if self.minimize else score >= self.target

    def command_line(self, values: Values) -> list[str]:
        """The command of a trial, as ``wandb agent`` builds it from the same file."""
        return command_line(self.command, self.program, values)


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ConfigError: the file is wrong; the message names the file, the key and the error.
    """
    path = Path(path)
    raw = read_mapping(path)
    try:
        return _sweep(raw, path.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _sweep(raw: Mapping[Any, Any], stem: str) -> Sweep:
    require_keys("", raw, _KEYS)
    if missing := [key for key in ("method", "parameters") if key not in raw]:
        raise ConfigError(f"this is not a sweep: it needs method and parameters, but lacks {' and '.join(missing)}")
    require_choice("method", raw["method"], _METHODS)
    metric, program = _metric(raw.get("metric")), _text(raw, "program")
    if raw.get("run_cap") is not None:
        COUNT.check(run_cap=raw["run_cap"])
    early_terminate = _early_terminate(raw.get("early_terminate"))
    if not metric and (early_terminate or raw["method"] == "bayes"):
        raise ConfigError("bayes and early_terminate need a metric: write metric: {name: val/loss, goal: minimize}")
    command = check_command(raw.get("command"), program)
    parameters = _parameters(raw["parameters"], raw["method"])
    return Sweep(
        name=_name(raw, stem),
        method=raw["method"],
        parameters=parameters,
        metric=metric.get("name"),
        minimize=metric.get("goal", "minimize") == "minimize",
        target=metric.get("target"),
        command=command,
        program=program,
        run_cap=raw.get("run_cap"),
        early_terminate=early_terminate,
        raw={**raw, "parameters": parameters},
    )


def _name(raw: Mapping[str, Any], stem: str) -> str:
    """The sweep's name, which is also that of its folder."""
    name = _text(raw, "name") or stem
    if Path(name).is_absolute() or not Path(name).parts or ".." in Path(name).parts or not name.isprintable():
        raise ConfigError(f"name {name!r} cannot be the name of a folder under runs/sweeps: choose another")
    return name


def _text(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key} must be non-empty text, got {value!r}: put it in quotes, or leave it out")
    return value


def _metric(raw: Any) -> Mapping[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        name = raw if isinstance(raw, str) else "val/loss"
        raise ConfigError(f"metric must have a name, got {raw!r}: write metric: {{name: {name}, goal: minimize}}")
    require_keys("metric.", raw, _METRIC_KEYS)
    if _text(raw, "name") is None:
        raise ConfigError("metric lacks a name: write metric: {name: val/loss, goal: minimize}")
    if "goal" in raw:
        require_choice("metric.goal", raw["goal"], _GOALS)
    if "target" in raw:
        FINITE.check(**{"metric.target": raw["target"]})
    return raw


def _early_terminate(raw: Any) -> Mapping[str, Any] | None:
    if raw is None:
        return None
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"early_terminate is {raw!r}: write early_terminate: {{type: hyperband, min_iter: 3}}")
    require_keys("early_terminate.", raw, ["type", "strict", *_HYPERBAND])
    require_choice("early_terminate.type", raw.get("type"), ["hyperband"])
    for key, domain in _HYPERBAND.items():
        if key in raw:
            domain.check(**{f"early_terminate.{key}": raw[key]})
    if not isinstance(raw.get("strict", False), bool):
        raise ConfigError(f"early_terminate.strict must be true or false, got {raw['strict']!r}")
    if "min_iter" not in raw and not {"max_iter", "s"} <= set(raw):
        raise ConfigError("early_terminate needs min_iter, or max_iter and s")
    return raw


def _parameters(raw: Any, method: str) -> dict[str, dict[str, Any]]:
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"parameters must have names, got {raw!r}: write parameters: {{seed: {{values: [0, 1]}}}}")
    for name in raw:
        _check_option_name(name)
    return {name: _parameter(name, raw[name], method) for name in raw}


def _check_option_name(name: object) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"parameters: YAML reads the name {name!r} as {type(name).__name__}: put it in quotes")
    if not name or name.startswith("-") or "=" in name or any(letter.isspace() for letter in name):
        raise ConfigError(f"parameters: {name!r} is not an option's name: leave out dashes before it, spaces and '='")


def _parameter(name: str, raw: Any, method: str) -> dict[str, Any]:
    try:
        parameter = check_parameter(raw)
    except ConfigError as error:
        raise ConfigError(f"parameter {name}: {error}") from error
    if method == "grid" and not {"value", "values"} & set(parameter):
        raise ConfigError(f"parameter {name} of a grid needs value or values")
    return parameter
