"""The domains of the sizes that the networks share; they are checked before any layer is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cm_lightning.domains import BELOW_ONE, COUNT, NATURAL, Domain
from cm_lightning.errors import ConfigError


def check_levels(
    owner: object,
    image_channels: int,
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    attention_levels: Sequence[int],
) -> None:
    """Raise ConfigError, which names the owner's class and the option, unless these describe a network of levels."""
    COUNT.check(owner, image_channels=image_channels, channels=channels, blocks=blocks)
    COUNT.check_each(owner, multipliers=multipliers)
    last = len(multipliers) - 1
    if not isinstance(attention_levels, Iterable) or list(attention_levels):
        level = Domain(f"one of the levels 0 ... {last} of multipliers", lambda value: 0 <= value <= last, whole=True)
        level.check_each(owner, attention_levels=attention_levels)


def check_conditions(owner: object, num_classes: int, dropout: float) -> None:
    """Raise ConfigError, which names the owner's class and the option, for a number out of range."""
    NATURAL.check(owner, num_classes=num_classes)
    BELOW_ONE.check(owner, dropout=dropout)


def heads(owner: object, channels: int, head_width: int) -> int:
    """The attention heads of about ``head_width`` channels. Raises ConfigError if they do not divide the channels."""
    COUNT.check(owner, head_width=head_width)
    number = max(1, channels // head_width)
    if channels % number:
        raise ConfigError(
            f"{type(owner).__name__}: head_width {head_width} makes {number} heads of {channels} channels, which it "
            f"does not divide: choose a divisor of {channels}"
        )
    return number
