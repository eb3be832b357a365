"""Callbacks that send signals where several processes run."""

import os
import signal

import lightning as L


class RankSignalAt(L.Callback):
    """Sends a signal to one rank alone, within a step."""

    def __init__(self, rank, step, number=int(signal.SIGTERM)):
        self.rank, self.step, self.number = rank, step, number

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class GroupSignalAt(L.Callback):
    """Sends a signal to a run and all that it started, as schedulers and terminals do, at the end of an epoch."""

    def __init__(self, number):
        self.number = number
        os.setsid()

    def on_train_epoch_end(self, trainer, pl_module):
        os.killpg(0, self.number)


class Destroyed:
    """Python swallows what is raised while an object is destroyed."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


class SwallowedAt(L.Callback):
    """Receives Ctrl-C within a destructor."""

    def __init__(self, step):
        self.step, self.done = step, False

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step == self.step and not self.done:
            self.done = True
            Destroyed()


class KillIn(L.Callback):
    """Kills its process in a hook after a number of steps; ``saved`` is the moment after a checkpoint is written."""

    def __init__(self, hook, step):
        self.hook, self.step = hook, step
        if hook != "saved":
            setattr(self, hook, self._called)

    def on_after_backward(self, trainer, pl_module):
        if self.hook == "saved" and trainer.global_step == self.step - 1:
            pl_module.on_train_batch_end = _kill  # Lightning calls it after the callbacks

    def _called(self, trainer, *_):
        if trainer.global_step == self.step:
            _kill()


def _kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
