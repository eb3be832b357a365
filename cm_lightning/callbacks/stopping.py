"""Ending training from outside: Ctrl-C, or the signal of a scheduler."""

from __future__ import annotations

import signal
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cm_lightning.interrupt import Deferred, Listener
from cm_lightning.slurm import requeue_signals

#: The exit status of a run that was told to end and should be queued again (EX_TEMPFAIL of sysexits).
REQUEUE = 75


class Stopping:
    """Ends training on all ranks after the same step, regardless of which of them received a signal.

    On one rank a signal outside a step acts at once. Several ranks agree after each batch, by :class:`Agreement`,
    because a rank that left alone would keep the others waiting forever.
    """

    def __init__(self) -> None:
        self._step = Deferred()
        self._listener = Listener(self._act)
        self._agreement: Agreement | None = None
        #: Whether all ranks left training together, so that they can save together.
        self.agreed = False

    def listen(self, trainer: L.Trainer) -> None:
        """Take signals over from Lightning, whose handler makes the ranks of a SIGTERM wait for one another."""
        if self._agreement is None and trainer.world_size > 1:
            self._agreement = Agreement()
        self.agreed = False
        self._listener.listen(*requeue_signals(trainer))

    def begin_step(self) -> None:
        """Make signals wait from here to :meth:`end_step`."""
        if self._agreement is None:
            self._step.start()

    def end_step(self) -> None:
        """Act on a signal that came within the step."""
        self._step.end()
        self.check()

    def check(self) -> None:
        """Leave training if any rank had received a signal at the previous call; all ranks must call this.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
            SIGTERMException: it was another signal.
        """
        if not self._listener.listens:
            return
        received = self._listener.received or 0
        if self._agreement is not None:
            received = self._agreement(received)
        if received:
            self._leave(received)

    def close(self) -> None:
        """Return signals to their previous handlers."""
        self._step.drop()
        self._agreement = None
        self._listener.close()

    @property
    def wants_requeue(self) -> bool:
        """Whether the signal was the one by which SLURM asks a job to queue itself again."""
        return self._listener.received not in (None, signal.SIGINT, signal.SIGTERM)

    def _act(self, number: int) -> None:
        if self._agreement is None:
            self._leave(number)

    def _leave(self, number: int) -> None:
        self.agreed = True
        self._listener.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SIGTERMException(REQUEUE)


class Agreement:
    """Returns the greatest number that any rank gave one call earlier; all ranks must create and call it together.

    It is exchanged on the host while the next step runs, so that no rank waits for its device or for another rank.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self._before: tuple[torch.Tensor, Any] | None = None

    def __call__(self, number: int) -> int:
        before, given = self._before, torch.tensor(number)
        self._before = given, dist.all_reduce(given, dist.ReduceOp.MAX, self._group, async_op=True)
        if before is None:
            return 0
        greatest, exchange = before
        exchange.wait()
        return int(greatest)


def exit_status(trainer: L.Trainer, status: int) -> int:
    """The exit status of an interrupted rank; 0 if Lightning started it, as it kills all ranks after another status."""
    launched = isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
    return 0 if launched and trainer.local_rank > 0 else status
