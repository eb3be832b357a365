"""Ctrl-C and the signals by which a scheduler ends a program, which wait for work that must not be interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Ctrl-C, and what schedulers send some time before they kill.
_END = (signal.SIGINT, signal.SIGTERM)
#: The signals that wait, where Python handles them.
_KINDS = (*_END, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Deferred:
    """Between ``start`` and ``end`` the first signal is kept for ``end``; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._received: int | None = None

    def start(self) -> None:
        """Make signals wait from here on. Only the main thread can, and only for signals that Python handles."""
        if self._former or threading.current_thread() is not threading.main_thread():
            return
        self._received = None
        for number in _KINDS:
            if callable(signal.getsignal(number)):
                self._former[number] = signal.signal(number, self._keep)

    def end(self) -> None:
        """Pass a kept signal to its previous handler, which raises KeyboardInterrupt for Ctrl-C."""
        received, handler = self._received, self._former.get(self._received or 0)
        self.drop()
        if received is not None and handler is not None:
            handler(received, None)

    def drop(self) -> None:
        """Restore the previous handlers without an exception."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former, self._received = {}, None

    def _keep(self, number: int, _: Any) -> None:
        if number == signal.SIGINT == self._received:
            self.drop()
            raise KeyboardInterrupt
        self._received = number


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Make a first signal wait for the end of the block."""
    deferred = Deferred()
    deferred.start()
    try:
        yield
    except BaseException:
        deferred.drop()
        raise
    deferred.end()


class Listener:
    """Remembers a signal that asks a program to end, in the main thread, from ``listen`` to ``close``.

    Python swallows what a handler raises within a destructor, such as that of a loader's processes, so callers must
    also check ``received``.

    Args:
        act: called with the signal's number when it comes; it may raise. A second Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act
        #: The number of the signal that was received; None before.
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    @property
    def listens(self) -> bool:
        """Whether signals are being received."""
        return bool(self._former)

    def listen(self, *further: int) -> None:
        """Handle Ctrl-C (unless it is switched off), SIGTERM and further signals."""
        if self._former or threading.current_thread() is not threading.main_thread():
            return
        self.received = None
        for number in (*_END, *further):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._former[number] = signal.signal(number, self._hear)

    def close(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _hear(self, number: int, _: Any) -> None:
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = number
        self.act(number)
