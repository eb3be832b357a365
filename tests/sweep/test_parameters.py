"""A parameter of a sweep: what is refused, and what the distributions draw."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import yaml

from cm_lightning.errors import ConfigError
from cm_lightning.sweep.parameters import check_parameter, draw


def drawn(text: str, count: int = 400) -> list:
    parameter = check_parameter(yaml.safe_load(text))
    generator = random.Random(0)
    return [draw(parameter, generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{min: 3, max: 1}", "min 3 is above max 1: swap them"),
        ("{min: 0.5, max: 0.1}", "min 0.5 is above max 0.1: swap them"),
        ("{min: 1e-2, max: 1e-5}", "min 0.01 is above max 1e-05: swap them"),
        ("{distribution: categorical_w_probabilities, values: [1, 2]}", "needs probabilities"),
        ("{min: 3}", "distribution uniform cannot be drawn without max"),
        ("{max: 3}", "distribution uniform cannot be drawn without min"),
        ("{distribution: uniform}", "distribution uniform cannot be drawn without min and max"),
        ("{min: null, max: 1}", "min must be a finite number, got None"),
        ("{min: low, max: 1}", "min must be a finite number, got 'low'"),
        ("{min: 0, max: [1]}", "max must be a finite number, got [1]"),
        ("{min: 0, max: true}", "max must be a finite number, got True"),
        ("{min: 0, max: .inf}", "max must be a finite number, got inf"),
        ("{min: .nan, max: 1}", "min must be a finite number, got nan"),
        ("{min: nan, max: 1}", "min must be a finite number, got nan"),
        ("{distribution: int_uniform, min: 0.5, max: 3}", "min must be a whole number, got 0.5"),
        ("{distribution: log_uniform_values, min: 0, max: 1}", "min must be a finite number above 0, got 0"),
        ("{distribution: log_uniform_values, min: -1, max: 1}", "min must be a finite number above 0, got -1"),
        ("{distribution: q_log_uniform_values, min: 0, max: 1}", "min must be a finite number above 0, got 0"),
        ("{distribution: inv_log_uniform_values, min: 0, max: 1}", "min must be a finite number above 0, got 0"),
        ("{distribution: log_uniform, min: 1e-5, max: 1e-2}", "for 1e-05 to 0.01 use log_uniform_values"),
        ("{distribution: q_log_uniform, min: 1e-5, max: 1e-2}", "use q_log_uniform_values"),
        ("{distribution: log_uniform, min: 0, max: 1000}", "max must be an exponent from -700 to 700, got 1000"),
        ("{distribution: q_uniform, min: 0, max: 9, q: 0}", "q must be a finite number above 0, got 0"),
        ("{distribution: q_uniform, min: 0, max: 9, q: -2}", "q must be a finite number above 0, got -2"),
        ("{distribution: q_normal, q: two}", "q must be a finite number above 0, got 'two'"),
        ("{distribution: normal, sigma: 0}", "sigma must be a finite number above 0, got 0"),
        ("{distribution: normal, sigma: -1}", "sigma must be a finite number above 0, got -1"),
        ("{distribution: log_normal, mu: x}", "mu must be a finite number, got 'x'"),
        ("{distribution: normal, mean: 0}", "no key mean; choose from value, values"),
        ("{distribution: normal, sgima: 1}", "no key sgima; perhaps sigma is meant"),
        ("{distribution: normal, min: 0, max: 1}", "distribution normal takes mu and sigma, not min"),
        ("{mu: 0, sigma: 1}", "give value, values, min and max, or a distribution of int_uniform, uniform"),
        ("{distribution: beta, a: 1}", "distribution beta cannot be drawn without b"),
        ("{distribution: beta, a: 0, b: 1}", "a must be a finite number above 0, got 0"),
        ("{distribution: gauss}", "distribution 'gauss' is unknown; choose constant, categorical"),
        ("{distribution: loguniform, min: 1, max: 2}", "perhaps log_uniform is meant"),
        ("{distribution: log_uniform_value, min: 1, max: 2}", "perhaps log_uniform_values is meant"),
        ("{distribution: Normal}", "distribution 'Normal' is unknown; perhaps normal is meant"),
        ("{distribution: [normal]}", "distribution ['normal'] is unknown"),
        ("{distribution: null, value: 1}", "distribution None is unknown"),
        ("{distribution: uniform, values: [1]}", "distribution uniform takes min and max, not values"),
        ("{distribution: categorical, value: 1}", "distribution categorical takes values and probabilities, not value"),
        ("{values: bf16}", "values must be a non-empty list, got 'bf16': write values: [A, B]"),
        ("{values: 3}", "values must be a non-empty list, got 3"),
        ("{values: []}", "values must be a non-empty list, got []"),
        ("{values: null}", "values must be a non-empty list, got None"),
        ("{values: {a: 1}}", "values must be a non-empty list, got {'a': 1}"),
        ("{value: 1, values: [1]}", "value and values cannot be combined: leave one out"),
        ("{value: 1, min: 0, max: 1}", "distribution constant takes value, not min"),
        ("{values: [1, 2], max: 1}", "distribution categorical takes values and probabilities, not max"),
        ("{value: 2024-01-01}", "YAML reads the value 2024-01-01 as date: put it in quotes"),
        ("{values: [a, 2024-01-01 10:00:00]}", "as datetime: put it in quotes"),
        ("{probabilities: [1]}", "distribution categorical cannot be drawn without values"),
        ("{values: [a, b], probabilities: [1]}", "probabilities must be a list of 2 numbers"),
        ("{values: [a, b], probabilities: 0.5}", "probabilities must be a list of 2 numbers"),
        ("{values: [a, b], probabilities: [0.5, x]}", "probabilities must be a number in [0, 1], got 'x'"),
        ("{values: [a, b], probabilities: [1.5, -0.5]}", "probabilities must be a number in [0, 1], got 1.5"),
        (
            "{values: [a, b], probabilities: [0.5, 0.6]}",
            "probabilities must sum to 1, but the sum of [0.5, 0.6] is 1.1",
        ),
        ("{values: [a, b], probabilities: [0, 0]}", "probabilities must sum to 1"),
        ("{vlaues: [1]}", "no key vlaues; perhaps values is meant"),
        ("{}", "give value, values, min and max, or a distribution"),
        ("3", "give value, values or a distribution: write {value: 3}"),
        ("[1, 2]", "give value, values or a distribution: write {values: [1, 2]}"),
        ("null", "give value, values or a distribution: write {value: null}"),
        ("{parameters: {a: {value: 1}}}", "write nested parameters with dots: a.b: {value: 1}"),
    ],
)
def test_what_cannot_be_drawn_is_refused(text, expected):
    with pytest.raises(ConfigError) as refused:
        check_parameter(yaml.safe_load(text))
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("text", "low", "high", "median"),
    [
        ("{min: 1e-5, max: 1e-2}", 1e-5, 1e-2, 5e-3),  # YAML 1.1 reads these bounds as text
        ("{distribution: log_uniform_values, min: 1e-5, max: 1e-2}", 1e-5, 1e-2, 10**-3.5),
        ("{distribution: log_uniform_values, min: '1e-5', max: '0.01'}", 1e-5, 1e-2, 10**-3.5),
        ("{distribution: inv_log_uniform_values, min: 1.0e-5, max: 1.0e-2}", 1e-5, 1e-2, 10**-3.5),
        ("{distribution: log_uniform, min: -4, max: 2}", math.exp(-4), math.exp(2), math.exp(-1)),
        ("{distribution: inv_log_uniform, min: -4, max: 2}", math.exp(-2), math.exp(4), math.exp(1)),
        ("{distribution: uniform, min: -1, max: 3}", -1, 3, 1),
        ("{distribution: normal, mu: 10, sigma: '1e0'}", 5, 15, 10),
        ("{distribution: normal}", -5, 5, 0),
        ("{distribution: log_normal, mu: 2}", math.exp(-3), math.exp(7), math.exp(2)),
        ("{distribution: beta, a: 2, b: 2}", 0, 1, 0.5),
        ("{distribution: int_uniform, min: 1e0, max: 3}", 1, 3, 2),
        ("{min: 4, max: 4}", 4, 4, 4),
    ],
)
def test_draws_lie_where_the_distribution_puts_them(text, low, high, median):
    values = drawn(text)
    assert all(low * (1 - 1e-9) <= value <= high * (1 + 1e-9) for value in values if low > 0)
    assert all(low <= value <= high for value in values if low <= 0)
    below = sum(value < median for value in values) / len(values)
    above = sum(value > median for value in values) / len(values)
    assert below == pytest.approx(above, abs=0.12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{distribution: q_uniform, min: 0, max: 10, q: 5}", {0, 5, 10}),
        ("{distribution: q_uniform, min: 0, max: 2}", {0, 1, 2}),
        ("{distribution: q_log_uniform_values, min: 1, max: 4, q: 2}", {2, 4}),
        ("{distribution: q_log_uniform, min: 0, max: 1.2, q: 1}", {1, 2, 3}),
        ("{distribution: q_beta, a: 1, b: 1, q: 0.5}", {0, 0.5, 1}),
        ("{min: 1, max: 3}", {1, 2, 3}),
        ("{min: '1', max: '3'}", {1, 2, 3}),
        ("{values: [a, b], probabilities: ['0', 1]}", {"b"}),
        ("{distribution: categorical_w_probabilities, values: [a, b], probabilities: [1.0, 0]}", {"a"}),
        ("{distribution: categorical, values: [null, 1e-5]}", {None, "1e-5"}),  # as W&B's agent passes it on
        ("{distribution: constant, value: null}", {None}),
    ],
)
def test_draws_are_of_these_values(text, expected):
    assert set(drawn(text)) == expected


@pytest.mark.parametrize("name", ["q_normal", "q_log_normal"])
def test_rounded_draws_are_multiples(name):
    values = drawn(f"{{distribution: {name}, mu: 3, sigma: 0.5, q: 0.25}}")
    assert all(value % 0.25 == 0 for value in values)
    centre = 3 if name == "q_normal" else math.exp(3)
    assert statistics.median(values) == pytest.approx(centre, rel=0.1)
