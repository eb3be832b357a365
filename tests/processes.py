"""Processes that tests start: fresh interpreters, and forks of one that has imported the suite already.

A fork is a process like any other, with memory, signals and an exit status of its own, but costs no import.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from torch import distributed

ROOT = Path(__file__).parents[1]
CONF = Path(__file__).parent / "conf"
_OURS = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # to look for one would forbid to fork
_IMPORTED = ["cm_lightning.cli", "cm_lightning.modules.latent_consistency", "tests.latent.tiny", "tests.processes"]


def start(*arguments: str, cwd: Any, check: bool = True, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """``python ARGUMENTS`` in an interpreter of its own."""
    env = {**os.environ, **_OURS, **(env or {})}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def fork(*arguments: str, cwd: Any, check: bool = True, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """``python -m MODULE ...`` or ``python SCRIPT ...`` as ``start`` does it, in a fork of the warm interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("out", "err")]
        process = forked(*arguments, cwd=cwd, said=said, env=env)
        process.join()
        out, err = (path.read_text() for path in said)
    assert not check or process.exitcode == 0, err[-3000:]
    return CompletedProcess(arguments, process.exitcode or 0, out, err)


def forked(*arguments: str, cwd: Any, said: list[Path], env: Mapping[str, str] | None = None) -> Any:
    """The running process; what it says goes to two files, or both to one."""
    context = multiprocessing.get_context("forkserver")
    with patch.dict(os.environ, {**_OURS, **_NO_GPU}):  # of the interpreter that is forked, if it does not run yet
        context.set_forkserver_preload(_IMPORTED)
        forkserver.ensure_running()
    where = [str(path) for path in (said[0], said[-1])]
    process = context.Process(target=_run, args=(arguments, str(cwd), {**os.environ, **_OURS, **(env or {})}, where))
    process.start()
    return process


@contextmanager
def two_ranks() -> Iterator[int]:
    """This process and a fork of it as the two ranks of Trainers, which meet in a file; only the first one leaves."""
    child = os.fork()
    rank = int(child == 0)
    os.environ |= {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    distributed.init_process_group("gloo", store=distributed.FileStore("meet", 2), rank=rank, world_size=2)
    yield rank
    if rank:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


class ForkedTrial:
    """In place of ``subprocess.Popen`` for a sweep's trial: the same command in a fork of the warm interpreter."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], stdout: Any, **_: Any) -> None:
        assert command[:2] == ["/usr/bin/env", "python"], command
        self._process = forked(*command[2:], cwd=os.getcwd(), said=[Path(stdout.name)], env=env)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, seconds: float | None = None) -> None:
        self._process.join(seconds)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a trial", seconds or 0.0)


def fork_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trials of a sweep be forks."""
    processes = SimpleNamespace(Popen=ForkedTrial, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("cm_lightning.sweep.trials.subprocess", processes)


def _run(arguments: tuple[str, ...], cwd: str, env: dict[str, str], said: list[str]) -> None:
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    module = arguments[0] == "-m"
    sys.argv = [*arguments[module:]]
    try:
        if module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(arguments[0]).parent))  # as the interpreter does
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
