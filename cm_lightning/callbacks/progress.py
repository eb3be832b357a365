"""The progress bar of the whole run, or occasional lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning_utilities.core.apply_func import apply_to_collection
from rich import get_console
from rich.live import Live
from rich.text import Text
from torch import Tensor

from cm_lightning.domains import NATURAL, NON_NEGATIVE
from cm_lightning.progress_line import Facts, bar_line, evaluation_line, plain_line
from cm_lightning.steps import steps_taken

#: Seconds between two drawings in a terminal.
_REDRAW_S = 0.25
#: Number of parts of the run, after each of which a log file gets a line.
_LINES = 10
#: Seconds after which it gets one regardless of the parts.
_SILENCE_S = 600.0
#: Number of drawings over which the speed is averaged.
_WINDOW = 40


class RunProgress(ProgressBar):
    """One bar for the whole run: its phase, steps, loss, images per second, and the time left.

    A terminal gets one line, which evaluations replace by their own. Elsewhere (a log file, a pipe, a notebook) a plain
    line is printed after each tenth of the run. The loss is read from the device only when it is shown.

    Args:
        refresh_rate: least number of steps between two drawings; 0 shows nothing.
        every_s: least number of seconds between two lines without a terminal.
    """

    def __init__(self, refresh_rate: int = 1, every_s: float = 30.0) -> None:
        NATURAL.check(self, refresh_rate=refresh_rate)
        NON_NEGATIVE.check(self, every_s=every_s)
        super().__init__()
        self.refresh_rate, self.every_s = refresh_rate, every_s
        self._shows = True
        self._screen: _Screen | None = None
        self._loss: Tensor | None = None
        self._images = 0
        self._began, self._first_step = 0.0, 0
        self._drawn_s, self._drawn_step, self._told = 0.0, 0, 0
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown, which is only on the first rank."""
        return self._shows and self.refresh_rate > 0

    def disable(self) -> None:
        """Show nothing from now on."""
        self._shows = False
        self._clear()

    def enable(self) -> None:
        """Show the bar again."""
        self._shows = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        get_console().print(*args, markup=False, highlight=False, **kwargs)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = self._drawn_s = time.monotonic()
        self._first_step = self._drawn_step = steps_taken(trainer)
        self._loss, self._images, self._told = None, 0, 0
        self._seen.clear()
        self._show(trainer, self._facts(trainer), first=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.is_enabled:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._loss = loss.detach() if isinstance(loss, Tensor) else None  # not read, which would wait for the device
        self._images += _samples(batch) * trainer.world_size
        if not self._seen:
            self._seen.append((time.monotonic(), self._images))
        if self._is_due(trainer):
            self._drawn_s, self._drawn_step = time.monotonic(), steps_taken(trainer)
            self._seen.append((self._drawn_s, self._images))
            self._show(trainer, self._facts(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clear()
        if self.is_enabled and steps_taken(trainer) > self._first_step:
            facts = self._facts(trainer, ended=True)
            print(bar_line(facts, _width()) if _is_terminal() else plain_line(facts), flush=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.tell("evaluation")

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._tell_batches("evaluation: loss", batch_idx, trainer.num_val_batches)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clear()
        self._seen.clear()  # the speed is that of training alone

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.tell("evaluation")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clear()

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._tell_batches("samples", batch_idx, trainer.num_predict_batches)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clear()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._clear()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._clear()

    def tell(self, what: str, done: int = 0, of: int = 0) -> None:
        """Show the progress of an evaluation in a terminal."""
        if self.is_enabled and _is_terminal():
            self._draw(evaluation_line(what, done, of, _width()))

    def _tell_batches(self, what: str, batch_idx: int, batches: Any) -> None:
        finite = [n for n in batches if n != float("inf")] if isinstance(batches, list) else [batches]
        self.tell(what, batch_idx + 1, max(int(sum(finite)), batch_idx + 1))

    def _is_due(self, trainer: L.Trainer) -> bool:
        """Whether it is time for a drawing, or for a line."""
        if steps_taken(trainer) - self._drawn_step < self.refresh_rate:
            return False
        waited = time.monotonic() - self._drawn_s
        if _is_terminal():
            return waited >= _REDRAW_S
        return waited >= self.every_s and (self._part(trainer) > self._told or waited >= _SILENCE_S)

    def _part(self, trainer: L.Trainer) -> int:
        return int((self._fraction(trainer) or 0.0) * _LINES + 1e-9)

    def _fraction(self, trainer: L.Trainer) -> float | None:
        """How much of the run is done: by its steps, or by the time that it may take, whichever ends it first."""
        total, fractions = _total_steps(trainer), []
        if total:
            fractions.append(steps_taken(trainer) / total)
        if timer := _timer(trainer):
            left, elapsed = timer.time_remaining() or 0.0, timer.time_elapsed()
            fractions.append(elapsed / max(elapsed + left, 1e-9))
        return min(1.0, max(fractions)) if fractions else None

    def _seconds_left(self, trainer: L.Trainer) -> float | None:
        """The time left by the pace since the start of this process, including evaluations."""
        done, total, left = steps_taken(trainer) - self._first_step, _total_steps(trainer), []
        if done and total:
            left.append((time.monotonic() - self._began) / done * max(0, total - steps_taken(trainer)))
        if timer := _timer(trainer):
            left.append(max(0.0, timer.time_remaining() or 0.0))
        return min(left, default=None)

    def _speed(self) -> float | None:
        if len(self._seen) < 2:
            return None
        (since, before), (now, images) = self._seen[0], self._seen[-1]
        return (images - before) / (now - since) if now > since else None

    def _facts(self, trainer: L.Trainer, ended: bool = False) -> Facts:
        total, step = _total_steps(trainer), steps_taken(trainer)
        loss = None if self._loss is None else float(self._loss) * trainer.accumulate_grad_batches
        elapsed = time.monotonic() - self._began
        return Facts(
            "trained" if ended else _phase(trainer, step),
            self._fraction(trainer),
            f"{step}/{total}" if total else f"{step}",
            loss,
            self._images / elapsed if ended and elapsed > 0 else self._speed(),
            elapsed if ended else self._seconds_left(trainer),
            ended,
        )

    def _show(self, trainer: L.Trainer, facts: Facts, first: bool = False) -> None:
        self._told = self._part(trainer)
        if not self.is_enabled:
            return
        if _is_terminal():
            self._draw(bar_line(facts, _width()))
        elif not first:
            print(plain_line(facts), flush=True)

    def _draw(self, line: str) -> None:
        if self._screen is None:
            self._screen = _Screen()
        self._screen.draw(line)

    def _clear(self) -> None:
        """Remove the bar completely."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None


class _Screen:
    """The last line of the terminal; what is printed or logged meanwhile appears above it."""

    def __init__(self) -> None:
        self._live = Live(
            console=get_console(), auto_refresh=False, transient=True, redirect_stderr=sys.stderr.isatty()
        )
        self._live.start()
        # Lightning's loggers hold the error stream from the time of their creation
        self._moved = [(handler, handler.setStream(sys.stderr)) for handler in _handlers()]

    def draw(self, line: str) -> None:
        self._live.update(Text(line, no_wrap=True, overflow="crop", end=""), refresh=True)

    def close(self) -> None:
        for handler, stream in self._moved:
            if stream is not None:
                handler.setStream(stream)
        self._live.stop()


def tell(trainer: L.Trainer, what: str, done: int = 0, of: int = 0) -> None:
    """Show the progress of a callback's evaluation if the run has a bar."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunProgress):
            callback.tell(what, done, of)


def _is_terminal() -> bool:
    """Whether the bar can be redrawn in its place; Live, which replaces the stream, does not tell."""
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return bool(stream.isatty()) and get_console().is_interactive


def _width() -> int:
    """Return the width of a line that no terminal wraps."""
    return max(10, get_console().width - 1)


def _handlers() -> list[logging.StreamHandler[Any]]:
    loggers = [logging.getLogger(name) for name in ("", "lightning", "lightning.pytorch", "lightning.fabric")]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    return [h for h in handlers if type(h) is logging.StreamHandler and h.stream is sys.__stderr__]


def _phase(trainer: L.Trainer, step: int) -> str:
    from cm_lightning.core.curriculum import Clock
    from cm_lightning.modules.trained import TrainedModule

    module, total = trainer.lightning_module, _total_steps(trainer)
    return module.phase(Clock(step, total)) if isinstance(module, TrainedModule) and total else "training"


def _total_steps(trainer: L.Trainer) -> int | None:
    """Return the steps of the whole run; None if its length is not known."""
    total = trainer.estimated_stepping_batches
    return int(total) if 0 < total < float("inf") else None


def _timer(trainer: L.Trainer) -> Timer | None:
    """The timer that ends the run after ``max_time``."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return next((timer for timer in timers if timer.time_remaining() is not None), None)


def _samples(batch: Any) -> int:
    sizes: list[int] = []
    apply_to_collection(batch, Tensor, lambda tensor: sizes.append(len(tensor) if tensor.ndim else 1))
    return sizes[0] if sizes else 0
