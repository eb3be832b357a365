"""Checkpoints are whole whenever the process that writes them is killed; and what stands in for one that is not."""

import io
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from cm_lightning import checkpoint_io
from cm_lightning.callbacks.save_last import SaveLast
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.checkpoint_io import AtomicCheckpointIO, write_atomically
from cm_lightning.cli import main
from cm_lightning.errors import CheckpointError
from cm_lightning.files import remove_leftovers
from cm_lightning.run import find_checkpoint, last_checkpoint, say_once
from tests.helpers import module, points, trainer

LAST = Path("checkpoints/last.ckpt")
TOY = f"--config={Path(__file__).parents[1] / 'conf'}/toy.yaml"


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    say_once.cache_clear()


def state(step):
    return {"state_dict": {"weight": torch.full((500,), float(step))}, "global_step": step}


def write(step, path=LAST):
    AtomicCheckpointIO().save_checkpoint(state(step), path)
    return Path(path)


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(io.FileIO):
    """A file at a certain byte of which the process is killed."""

    limit = 0

    def write(self, data):
        if self.tell() + len(data) > self.limit:
            super().write(bytes(data)[: max(0, self.limit - self.tell())])
            kill()
        return super().write(data)


def killed(**patches):
    """Save in a process that is killed at one of these functions."""
    if (child := os.fork()) == 0:
        try:
            for name, function in patches.items():
                setattr(checkpoint_io, name, function)
            write(2)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def step_of_last():
    return read_checkpoint(find_checkpoint("."))["global_step"]


@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.8, 0.99, 0.9999])
def test_a_kill_in_mid_write_leaves_the_former_checkpoint_and_its_rest_is_removed(part):
    size = write(1).stat().st_size
    Dying.limit = int(part * size)
    assert killed(open=Dying)
    assert step_of_last() == 1
    assert [path.name[0] for path in LAST.parent.iterdir()].count(".") == 1
    remove_leftovers(Path())
    assert os.listdir(LAST.parent) == ["last.ckpt"]
    write(3)
    assert step_of_last() == 3


@pytest.mark.parametrize(
    ("point", "function", "step"),
    [("replacing", kill, 1), ("open", kill, 1), ("make_durable", kill, 1), ("_make_folder_durable", kill, 2)],
)
def test_a_kill_between_the_parts_of_a_write_leaves_one_of_the_two(point, function, step):
    write(1)
    assert killed(**{point: function})
    assert step_of_last() == step


def test_a_kill_while_the_first_checkpoint_is_written_leaves_none():
    Dying.limit = 100
    assert killed(open=Dying)
    with pytest.raises(CheckpointError, match="no checkpoint below"):
        find_checkpoint(".")


@pytest.mark.parametrize("part", [0, 0.01, 0.25, 0.5, 0.75, 0.99, 0.9999])
def test_a_broken_last_is_replaced_by_the_newest_whole_one_and_a_line_says_so(part, log):
    for step in (9, 10):
        write(step, f"checkpoints/epoch=0-step={step}.ckpt")
    data = write(11).read_bytes()
    LAST.write_bytes(data[: int(part * len(data))])
    Path("checkpoints/epoch=0-step=12.ckpt").write_bytes(data[:200])
    assert read_checkpoint(".")["global_step"] == 10
    assert log[0] == f"{LAST} is not complete: checkpoints/epoch=0-step=10.ckpt takes its place"
    assert log[0] not in log[1:]


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("folder", [True, False])
def test_a_broken_last_alone_is_one_line(part, folder):
    data = write(1).read_bytes()
    LAST.write_bytes(data[: int(part * len(data))])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("." if folder else LAST)
    assert str(caught.value) == f"{LAST} cannot be read as a checkpoint of plain tensors: is it complete?"


def test_last_of_a_run_goes_back_to_the_version_before_a_broken_one():
    for number in (0, 1):
        write(number, f"runs/x/version_{number}/{LAST}")
    broken = Path(f"runs/x/version_1/{LAST}")
    broken.write_bytes(broken.read_bytes()[:300])
    assert last_checkpoint(Path("runs/x")) == Path(f"runs/x/version_0/{LAST}")
    assert find_checkpoint("runs/x") == Path(f"runs/x/version_0/{LAST}")
    assert find_checkpoint("runs/x/version_1") == broken  # the reader says what is wrong


HOST = platform.node()


@pytest.mark.parametrize(
    ("name", "days", "stays"),
    [
        (".last.{host}.{dead}.ckpt", 0, False),
        (".epoch=0-step=4.{host}.{dead}.ckpt", 0, False),
        (".metrics.{host}.{dead}.csv", 0, False),
        (".config.{host}.{own}.yaml", 0, False),
        (".noending.{host}.{dead}", 0, False),
        (".last.{host}.{alive}.ckpt", 0, True),
        (".last.{host}.{alive}.ckpt", 9, True),
        (".last.node-17.some.cluster.812.ckpt", 0, True),
        (".last.node-17.some.cluster.812.ckpt", 2, False),
        (".epoch=0-step=4.node17.812.ckpt", 2, False),
        (".hidden", 2, True),
        (".hidden.123", 2, True),
        ("last.{host}.{dead}.ckpt", 2, True),
        ("..{host}.{dead}.ckpt", 2, True),
    ],
)
def test_what_killed_processes_left_is_removed(name, days, stays):
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = Path("run/checkpoints", name.format(host=HOST, dead=ended.pid, own=os.getpid(), alive=os.getppid()))
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (time.time() - days * 86400,) * 2)
    remove_leftovers(Path())
    assert path.exists() == stays


@pytest.mark.parametrize("temporary", ["a/device/of/its/own", None])
def test_nothing_is_written_elsewhere(temporary, monkeypatch):
    if temporary:
        monkeypatch.setenv("TMPDIR", temporary)  # does not exist, so that a write would fail
    opened = []
    monkeypatch.setattr(checkpoint_io, "open", lambda *a: opened.append(Path(a[0])) or open(*a), raising=False)  # noqa: SIM115
    write(1)
    assert [path.parent for path in opened] == [LAST.parent]
    assert opened[0] != LAST


def test_a_full_disk_is_a_line_with_path_and_remedy_and_the_former_checkpoint_stays(monkeypatch):
    write(1)
    monkeypatch.setattr(checkpoint_io, "open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
    with pytest.raises(CheckpointError) as caught:
        write(2)
    assert str(caught.value) == (
        "checkpoints/last.ckpt cannot be written (No space left on device): free space there or set save_dir of "
        "trainer.logger to another disk; the previous checkpoint is kept"
    )
    assert step_of_last() == 1
    assert os.listdir(LAST.parent) == ["last.ckpt"]


def test_python_users_of_save_last_write_atomically_by_all_checkpoint_callbacks(tmp_path):
    theirs = ModelCheckpoint(dirpath=tmp_path / "theirs")
    t = trainer(tmp_path, callbacks=[SaveLast(), theirs], enable_checkpointing=True, max_steps=1)
    t.fit(module(), points())
    assert type(t.strategy.checkpoint_io) is AtomicCheckpointIO
    assert read_checkpoint(theirs.best_model_path)["global_step"] == 1


class Own(AtomicCheckpointIO):
    """A plugin of the user's."""


@pytest.mark.parametrize(
    ("plugins", "expected"), [([], AtomicCheckpointIO), ([Own()], Own), ([AsyncCheckpointIO()], AsyncCheckpointIO)]
)
def test_a_plugin_of_ones_own_stays(plugins, expected):
    t = L.Trainer(accelerator="cpu", plugins=plugins, logger=False, barebones=False)
    write_atomically(t)
    assert type(t.strategy.checkpoint_io) is expected
    if expected is AsyncCheckpointIO:
        assert type(t.strategy.checkpoint_io.checkpoint_io) is AtomicCheckpointIO


def test_the_command_line_starts_by_removing_what_a_killed_run_left():
    dead = Path(f"runs/toy/version_0/checkpoints/.last.{HOST}.{2**22 + 1}.ckpt")  # above the largest number
    dead.parent.mkdir(parents=True)
    dead.touch()
    main(["fit", TOY, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"])
    assert not dead.exists()
    assert read_checkpoint("runs/toy/version_1")["global_step"] == 1
