"""The end of training that comes from outside: Ctrl-C, or the signal of a scheduler."""

from __future__ import annotations

import signal

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cm_lightning.interrupt import Deferred, Listener
from cm_lightning.slurm import requeue_signals

#: The exit status of a training that was told to end and is to be queued again (sysexits' EX_TEMPFAIL).
REQUEUE = 75


class Stopping:
    """Ends training on all ranks after the same step, whichever of them received a signal.

    On one rank a signal outside a step acts at once. Several ranks agree after each batch, by one number that they
    reduce, because a rank that left alone would keep the others waiting for ever.
    """

    def __init__(self) -> None:
        self._step = Deferred()
        self._listener = Listener(self._act)
        self._alone = True
        #: Whether all ranks left training together, so that they can save together.
        self.agreed = False

    def listen(self, trainer: L.Trainer) -> None:
        """Take signals over from Lightning, whose handler makes the ranks of a SIGTERM wait for one another."""
        self._alone, self.agreed = trainer.world_size == 1, False
        self._listener.listen(*requeue_signals(trainer))

    def begin_step(self) -> None:
        """Let signals wait from here to :meth:`end_step`."""
        if self._alone:
            self._step.start()

    def end_step(self, trainer: L.Trainer) -> None:
        """Act on what came within the step."""
        self._step.end()
        self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """Leave training if any rank received a signal; all must call it.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
            SIGTERMException: it was another signal.
        """
        if not self._listener.listens:
            return
        received = self._listener.received or 0
        if not self._alone:
            received = int(trainer.strategy.reduce(_number(trainer, received), reduce_op="max"))
        if received:
            self._leave(received)

    def close(self) -> None:
        """Hand signals back."""
        self._step.drop()
        self._listener.close()

    @property
    def wants_requeue(self) -> bool:
        """Whether the signal was the one by which SLURM asks a job to queue itself again."""
        return self._listener.received not in (None, signal.SIGINT, signal.SIGTERM)

    def _act(self, number: int) -> None:
        if self._alone:
            self._leave(number)

    def _leave(self, number: int) -> None:
        self.agreed = True
        self._listener.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SIGTERMException(REQUEUE)


def _number(trainer: L.Trainer, value: int) -> torch.Tensor:
    return torch.tensor(value, device=trainer.strategy.root_device)


def exit_status(trainer: L.Trainer, status: int) -> int:
    """The exit status of a rank that was interrupted; 0 if Lightning started it, which kills all after another one."""
    launched = isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
    return 0 if launched and trainer.local_rank > 0 else status
