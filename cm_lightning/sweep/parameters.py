"""A parameter of a sweep: its forms in W&B's sweep files, and how its values are drawn."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cm_lightning.domains import FINITE, FRACTION, INTEGER, POSITIVE, Domain
from cm_lightning.errors import ConfigError
from cm_lightning.sweep.file import require_choice, require_keys

_Draw = Callable[[Mapping[str, Any], random.Random], Any]

_EXPONENT = Domain("an exponent from -700 to 700", lambda value: abs(value) <= 700)


@dataclass(frozen=True)
class Distribution:
    """A distribution to draw from.

    Args:
        draw: draws a value, given the parameter's options and a generator.
        needs: the options that must be given, and their domains.
        may: the options that may be given, and their domains.
        defaults: defaults of the options that may be given.
    """

    draw: _Draw
    needs: Mapping[str, Domain] = field(default_factory=dict)
    may: Mapping[str, Domain] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)

    def to_multiples(self) -> Distribution:
        """The distribution, rounded to multiples of the option ``q``."""
        return Distribution(
            lambda options, generator: round(self.draw(options, generator) / options["q"]) * options["q"],
            self.needs, {**self.may, "q": POSITIVE}, {**self.defaults, "q": 1},
        )  # fmt: skip


def _bounds(domain: Domain) -> dict[str, Domain]:
    return {"min": domain, "max": domain}


def _uniform(options: Mapping[str, Any], generator: random.Random) -> float:
    return generator.uniform(options["min"], options["max"])


def _log_uniform_values(options: Mapping[str, Any], generator: random.Random) -> float:
    return math.exp(generator.uniform(math.log(options["min"]), math.log(options["max"])))


def _normal(options: Mapping[str, Any], generator: random.Random) -> float:
    return generator.gauss(options["mu"], options["sigma"])


_SHAPE: dict[str, Any] = {"may": {"mu": FINITE, "sigma": POSITIVE}, "defaults": {"mu": 0.0, "sigma": 1.0}}
_ROUNDED = {
    "uniform": Distribution(_uniform, _bounds(FINITE)),
    "log_uniform": Distribution(lambda p, g: math.exp(_uniform(p, g)), _bounds(_EXPONENT)),
    "log_uniform_values": Distribution(_log_uniform_values, _bounds(POSITIVE)),
    "normal": Distribution(_normal, **_SHAPE),
    "log_normal": Distribution(lambda p, g: math.exp(_normal(p, g)), **_SHAPE),
    "beta": Distribution(lambda p, g: g.betavariate(p["a"], p["b"]), {"a": POSITIVE, "b": POSITIVE}),
}
#: W&B's names. Those of exponents (``log_uniform``) and those of bounds (``log_uniform_values``) differ.
_DRAWN = {
    "int_uniform": Distribution(lambda p, g: g.randint(p["min"], p["max"]), _bounds(INTEGER)),
    **_ROUNDED,
    **{f"q_{name}": distribution.to_multiples() for name, distribution in _ROUNDED.items()},
    "inv_log_uniform": Distribution(lambda p, g: math.exp(-_uniform(p, g)), _bounds(_EXPONENT)),
    "inv_log_uniform_values": Distribution(_log_uniform_values, _bounds(POSITIVE)),
}
_LISTED = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    "categorical_w_probabilities": ("values", "probabilities"),
}
_KEYS = ("value", "values", "probabilities", "distribution", "min", "max", "mu", "sigma", "q", "a", "b")


def check_parameter(raw: object) -> dict[str, Any]:
    """Check a parameter of a sweep file.

    Returns:
        The parameter with numbers in place of numeric text: YAML 1.1 reads ``1e-5``, without a point, as text.

    Raises:
        ConfigError: the parameter is wrong; the message does not include its name.
    """
    if not isinstance(raw, Mapping):
        key = "values" if isinstance(raw, list) else "value"
        raise ConfigError(f"give value, values or a distribution: write {{{key}: {json.dumps(raw, default=str)}}}")
    if "parameters" in raw:
        raise ConfigError("give value, values or a distribution; write nested parameters with dots: a.b: {value: 1}")
    require_keys("", raw, _KEYS)
    name = _distribution(raw)
    if name in _LISTED:
        return _check_listed(name, raw)
    return _check_drawn(name, raw)


def draw(parameter: Mapping[str, Any], generator: random.Random) -> Any:
    """Draw one value of a checked parameter."""
    if "value" in parameter:
        return parameter["value"]
    if "values" in parameter:
        return generator.choices(parameter["values"], parameter.get("probabilities"))[0]
    distribution = _DRAWN[_distribution(parameter)]
    return distribution.draw({**distribution.defaults, **parameter}, generator)


def _distribution(raw: Mapping[str, Any]) -> str:
    if "distribution" in raw:
        require_choice("distribution", raw["distribution"], [*_LISTED, *_DRAWN])
        return str(raw["distribution"])
    if "value" in raw:
        return "constant"
    if "values" in raw or "probabilities" in raw:
        return "categorical"
    if "min" in raw or "max" in raw:
        whole = all(_number(raw.get(bound)) in INTEGER for bound in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    raise ConfigError(f"give value, values, min and max, or a distribution of {', '.join(_DRAWN)}")


def _check_listed(name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    needs, *may = _LISTED[name]
    if "value" in raw and "values" in raw:
        raise ConfigError("value and values cannot be combined: leave one out")
    _check_options(name, raw, {needs}, {needs, *may})
    if name != "constant" and not (isinstance(raw["values"], list) and raw["values"]):
        raise ConfigError(f"values must be a non-empty list, got {raw['values']!r}: write values: [A, B]")
    if name == "categorical_w_probabilities" and "probabilities" not in raw:
        raise ConfigError("categorical_w_probabilities needs probabilities: one for each of the values")
    for value in raw["values"] if "values" in raw else [raw["value"]]:
        _check_value(value)
    if "probabilities" not in raw:
        return dict(raw)
    return {**raw, "probabilities": _check_probabilities(raw["probabilities"], len(raw["values"]))}


def _check_value(value: object) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"YAML reads the value {value} as {type(value).__name__}: put it in quotes") from error


def _check_probabilities(given: object, count: int) -> list[float]:
    if not isinstance(given, list) or len(given) != count:
        raise ConfigError(f"probabilities must be a list of {count} numbers, one for each of the values, got {given!r}")
    numbers = [_number(value) for value in given]
    for number in numbers:
        FRACTION.check(probabilities=number)
    if not math.isclose(sum(numbers), 1, abs_tol=1e-3):
        raise ConfigError(f"probabilities must sum to 1, but the sum of {given} is {sum(numbers):g}")
    return numbers


def _check_drawn(name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    distribution = _DRAWN[name]
    options = {**distribution.needs, **distribution.may}
    _check_options(name, raw, distribution.needs, options)
    numbers = {key: _number(value) for key, value in raw.items() if key in options}
    if name == "int_uniform":
        numbers = {key: int(n) if isinstance(n, float) and n.is_integer() else n for key, n in numbers.items()}
    for key, number in numbers.items():
        options[key].check(**{key: number})
    if "min" in numbers:
        _check_order(name, numbers["min"], numbers["max"])
    return {**raw, **numbers}


def _check_order(name: str, low: float, high: float) -> None:
    if low > high:
        raise ConfigError(f"min {low} is above max {high}: swap them")
    if name.endswith("log_uniform") and low > 0 and high < 1:  # they would give 1 to 2.7
        raise ConfigError(f"{name} takes the exponents of its bounds: for {low} to {high} use {name}_values")


def _check_options(name: str, raw: Mapping[str, Any], needs: Collection[str], options: Collection[str]) -> None:
    takes = f"distribution {name} takes {' and '.join(option for option in _KEYS if option in options)}"
    for key in raw:
        if key not in options and key != "distribution":
            raise ConfigError(f"{takes}, not {key}")
    if missing := [key for key in needs if key not in raw]:
        raise ConfigError(f"distribution {name} cannot be drawn without {' and '.join(missing)}")


def _number(value: Any) -> Any:
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value
