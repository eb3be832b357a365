"""The turns in which two networks, a generator and a critic, are trained."""

from __future__ import annotations

from typing import NamedTuple

from cm_lightning.domains import COUNT, at_least
from cm_lightning.recording import Recorded


class Turn(NamedTuple):
    """What trains at a step."""

    generator: bool
    critic: bool


class Turns(Recorded):
    """The generator trains at one of ``every`` steps, the critic at all steps or only at the others.

    Args:
        every: steps from one of the generator to the next; 5 in DMD2.
        together: whether the critic trains in the generator's steps, too. If not, each step holds the activations of
            only one network, and ``every`` must be at least 2.

    Raises:
        ConfigError: the critic would never train.
    """

    def __init__(self, every: int = 1, together: bool = True) -> None:
        COUNT.check(self, every=every)
        if not together:
            at_least(2).check(self, every=every)
        self.every, self.together = every, together

    def __call__(self, step: int) -> Turn:
        """What trains at optimizer step ``step``, counted from 0."""
        generator = step % self.every == 0
        return Turn(generator, self.together or not generator)
