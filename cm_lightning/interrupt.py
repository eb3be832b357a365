"""Deferring Ctrl-C until work that must not be interrupted is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Deferred:
    """Between ``start`` and ``end`` a first Ctrl-C is kept for ``end``, and a second one interrupts at once."""

    def __init__(self) -> None:
        self._former: Any = None
        self._received = False

    def start(self) -> None:
        """Make Ctrl-C wait from here on; only the main thread can, and not if Ctrl-C is switched off."""
        hears = threading.current_thread() is threading.main_thread()
        if self._former is None and hears and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
            self._received = False
            self._former = signal.signal(signal.SIGINT, self._keep)

    def end(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed since ``start``."""
        received = self._received
        self.drop()
        if received:
            raise KeyboardInterrupt

    def drop(self) -> None:
        """Put the former handler back, without an exception."""
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)
            self._former, self._received = None, False

    def _keep(self, *_: Any) -> None:
        if self._received:
            self.drop()
            raise KeyboardInterrupt
        self._received = True


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a first Ctrl-C wait for the end of the block."""
    deferred = Deferred()
    deferred.start()
    try:
        yield
    except BaseException:
        deferred.drop()
        raise
    deferred.end()
