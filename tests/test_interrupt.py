"""Deferred Ctrl-C."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from cm_lightning.interrupt import Deferred, uninterrupted


def press():
    os.kill(os.getpid(), signal.SIGINT)


def pressed(times, reached):
    with uninterrupted():
        for _ in range(times):
            press()
            reached.append("within")
    reached.append("after")


@pytest.mark.parametrize(("times", "within"), [(1, 1), (2, 1)])
def test_the_first_waits_for_the_end_and_the_second_does_not(times, within):
    handler, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        pressed(times, reached)
    assert reached == ["within"] * within
    assert signal.getsignal(signal.SIGINT) == handler


def failed():
    with uninterrupted():
        press()
        raise ValueError("boom")


def test_an_error_within_is_what_is_raised_and_the_handler_comes_back():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="boom"):
        failed()
    assert signal.getsignal(signal.SIGINT) == handler


def test_nothing_pressed_nothing_raised_and_a_second_start_or_drop_does_nothing():
    handler, deferred = signal.getsignal(signal.SIGINT), Deferred()
    deferred.start()
    deferred.start()
    deferred.end()
    deferred.drop()
    assert signal.getsignal(signal.SIGINT) == handler


def test_other_threads_are_left_alone():
    with ThreadPoolExecutor(1) as pool, uninterrupted():
        assert pool.submit(Deferred().start).result() is None


def test_a_signal_that_is_switched_off_stays_so():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            press()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)
