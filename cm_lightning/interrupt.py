"""Ctrl-C that waits: what must not be left half done is done first."""

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
        """From here on Ctrl-C waits, in the main thread, which alone hears of it, and unless it is switched off."""
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
