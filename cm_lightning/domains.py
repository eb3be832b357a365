"""The values that an option may take. A constructor checks its numbers where it stores them, before time is spent."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from cm_lightning.errors import ConfigError


@dataclass(frozen=True)
class Domain:
    """A set of numbers. Booleans, text, NaN and infinity belong to none.

    Args:
        name: completes the sentence "OPTION must be ...".
        contains: tells whether a finite number belongs to it.
        whole: whether only integers do.
    """

    name: str
    contains: Callable[[float], bool]
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        kind = Integral if self.whole else Real
        return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and self.contains(value)

    def check(self, **options: object) -> None:
        """Raise ConfigError for the first option whose value lies outside: ``POSITIVE.check(sigma_max=sigma_max)``."""
        for option, value in options.items():
            if value not in self:
                raise ConfigError(f"{option} must be {self.name}, got {value!r}")

    def parse(self, text: str) -> float:
        """Parse an option of a command: ``parser.add_argument("--steps", type=COUNT.parse)``."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError as error:
            raise ArgumentTypeError(f"must be {self.name}, got {text!r}") from error
        if value not in self:
            raise ArgumentTypeError(f"must be {self.name}, got {text}")
        return value

    def parse_list(self, text: str) -> list[float]:
        """Parse several values, "1,2,4"."""
        return [self.parse(part.strip()) for part in text.split(",")]


def at_least(low: int) -> Domain:
    """The whole numbers from ``low`` up."""
    return Domain(f"a whole number of at least {low}", lambda value: value >= low, whole=True)


FINITE = Domain("a finite number", lambda value: True)
POSITIVE = Domain("a finite number above 0", lambda value: value > 0)
NON_NEGATIVE = Domain("a finite number of at least 0", lambda value: value >= 0)
#: The closed interval, for shares and for probabilities that may be 1.
FRACTION = Domain("a number in [0, 1]", lambda value: 0 <= value <= 1)
#: The half-open interval, for decays and for dropout.
BELOW_ONE = Domain("a number in [0, 1)", lambda value: 0 <= value < 1)
COUNT = at_least(1)
NATURAL = at_least(0)
INTEGER = Domain("a whole number", lambda value: True, whole=True)
#: What torch's generators take.
SEED = Domain("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32, whole=True)


def check_counts(option: str, values: Sequence[object]) -> None:
    """Raise ConfigError unless the values of an option are numbers of at least 1, and there is one."""
    if not values:
        raise ConfigError(f"{option} must name at least one number")
    for value in values:
        COUNT.check(**{option: value})
