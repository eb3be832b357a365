"""The values that an option may take. Constructors check arguments where they store them, before time is spent."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real

from cm_lightning.errors import ConfigError


@dataclass(frozen=True)
class Domain:
    """A set of numbers. Booleans, text, NaN and infinity do not belong to any.

    Args:
        name: completes the sentence "OPTION must be ...".
        contains: decides whether a finite number belongs to it.
        whole: whether only integers belong to it.
    """

    name: str
    contains: Callable[[float], bool]
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if getattr(value, "ndim", None) == 0:  # NumPy's and torch's scalars
            value = value.item()  # type: ignore[attr-defined]
        kind = Integral if self.whole else Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        number: float = value  # type: ignore[assignment]
        return abs(number) <= sys.float_info.max and self.contains(number)

    def check(self, owner: object = None, /, **options: object) -> None:
        """Raise ConfigError for the first option whose value lies outside: ``POSITIVE.check(self, std=std)``.

        Args:
            owner: the object with these options; its class begins the line. If None, the option begins it.
            options: values by name.
        """
        for option, value in options.items():
            if value not in self:
                raise ConfigError(f"{_of(owner)}{option} must be {self.name}, got {_shown(value)}")

    def check_each(self, owner: object = None, /, **options: object) -> None:
        """:meth:`check` for options that are lists; an empty list is refused too."""
        for option, values in options.items():
            if isinstance(values, str) or not isinstance(values, Iterable) or not list(values):
                raise ConfigError(f"{_of(owner)}{option} must be a list of values, got {_shown(values)}")
            for value in values:
                if value not in self:
                    raise ConfigError(f"{_of(owner)}each of {option} must be {self.name}, got {_shown(value)}")

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


def check_ascending(owner: object = None, /, **options: float) -> None:
    """Raise ConfigError unless each option is below the next: ``check_ascending(self, low=low, high=high)``."""
    for (low, a), (high, b) in pairwise(options.items()):
        if not a < b:
            raise ConfigError(f"{_of(owner)}{low} must be below {high}, got {a:g} and {b:g}")


def _of(owner: object) -> str:
    return "" if owner is None else f"{type(owner).__name__}: "


def _shown(value: object) -> str:
    return repr(value.item() if getattr(value, "ndim", None) == 0 else value)  # type: ignore[attr-defined]


def multiple_of(factor: int) -> Domain:
    """The whole multiples of ``factor`` above 0."""
    return Domain(f"a multiple of {factor} above 0", lambda value: value > 0 and value % factor == 0, whole=True)


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
#: The open interval.
INNER = Domain("a number in (0, 1)", lambda value: 0 < value < 1)
#: The interval that is open at 0, for shares that are never empty.
SHARE = Domain("a number in (0, 1]", lambda value: 0 < value <= 1)
ABOVE_ONE = Domain("a finite number above 1", lambda value: value > 1)
FROM_ONE = Domain("a finite number of at least 1", lambda value: value >= 1)
COUNT = at_least(1)
NATURAL = at_least(0)
INTEGER = Domain("a whole number", lambda value: True, whole=True)
#: The seeds that torch's generators take.
SEED = Domain("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32, whole=True)
