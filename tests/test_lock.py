"""Locks of folders, and the marks of processes that are dead."""

import fcntl
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cm_lightning import lock as locks
from cm_lightning.cli import main
from cm_lightning.errors import ConfigError
from cm_lightning.lock import Lock, Owner, alone, require_unlocked
from tests.processes import CONF

BUSY = ("another training", "name another")


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def note(**changed):
    Path("x").mkdir(exist_ok=True)
    owner = replace(Owner.here(), **changed)
    Path("x/.lock").write_text(json.dumps(asdict(owner)))
    return owner


def take():
    lock = Lock()
    lock.take(Path("x"), *BUSY)
    return lock


def test_one_holds_a_folder_and_the_next_is_refused_until_it_is_given_back():
    held = take()
    for attempt in (take, lambda: require_unlocked(Path("x"), *BUSY)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert str(caught.value).startswith(
            "another training runs in x: wait until it ends, or name another; it is held by "
            f"process {os.getpid()} on {platform.node()} since "
        )
    held.release()
    held.release()
    require_unlocked(Path("x"), *BUSY)
    assert Owner.of(Path("x")).ended
    with alone(Path("x"), *BUSY), pytest.raises(ConfigError):
        take()
    take().release()


@pytest.fixture(params=[True, False])
def file_system(request, monkeypatch):
    """One with locks, and one without."""

    def none(*_):
        raise OSError(95, "Operation not supported")

    if not request.param:
        monkeypatch.setattr(locks.fcntl, "flock", none)
    return request.param


def test_a_dead_ones_lock_does_not_count(file_system, ended):
    note(pid=ended)
    take().release()


def test_a_number_that_another_process_has_now_does_not_count(file_system):
    note(began="1", pid=os.getppid())
    take().release()


def test_without_the_systems_locks_the_note_counts(file_system):
    note(pid=os.getppid(), began="")
    if file_system:
        take().release()
    else:
        with pytest.raises(ConfigError, match=f"process {os.getppid()} on"):
            take()


def test_another_machine_cannot_be_asked_so_the_line_says_what_to_remove(monkeypatch):
    note(host="node17")
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(95, "no locks")))
    with pytest.raises(ConfigError, match=r"if that has ended, remove x/\.lock"):
        take()
    note(host="node17", ended=True)
    take().release()


def test_a_child_that_outlives_its_dead_parent_does_not_hold_the_folder(ended):
    note(pid=ended)
    with open("x/.lock") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        take().release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"other": 1}', "null"])
def test_a_damaged_note_does_not_hold_a_folder(text):
    Path("x").mkdir()
    Path("x/.lock").write_text(text)
    assert Owner.of(Path("x")) is None
    take().release()


def test_a_second_training_of_a_named_version_is_refused_before_it_begins(capsys):
    lock = Lock()
    lock.take(Path("runs/toy/seed0"), *BUSY)
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={CONF}/toy.yaml", "--trainer.logger.init_args.version=seed0"])
    assert stop.value.code == 2
    assert "error: another training runs in runs/toy/seed0: wait" in capsys.readouterr().err
    lock.release()
    main(["fit", f"--config={CONF}/toy.yaml", "--trainer.logger.init_args.version=seed0", "--trainer.max_steps=1"])
    assert Owner.of(Path("runs/toy/seed0")).ended
