"""The rows of metrics.csv: none is lost and none doubled, wherever a run is killed."""

import csv
import errno
import math
import sys
from pathlib import Path

import pytest
import torch

from cm_lightning.callbacks import rows as module
from cm_lightning.callbacks.missed_validation import is_missing
from cm_lightning.callbacks.rows import Rows
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.errors import DataError
from tests.helpers import trainer
from tests.processes import CONF, fork

TOY = f"--config={CONF}/toy.yaml"
TIMES = ("train/images_per_s", "train/seconds")


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


def read(path="metrics.csv"):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def curve(folder, before=None):
    """The cells of a log as (step, name, value), without times."""
    return sorted(
        (int(row["step"]), name, value)
        for row in read(Path(folder, "metrics.csv"))
        if before is None or int(row["step"]) < before
        for name, value in row.items()
        if value and name not in ("step", *TIMES)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cm-lightning"])
        main(["fit", TOY])
    return curve(folder / "runs/toy/version_0")


@pytest.mark.parametrize(
    ("hook", "step", "resumed_at"),
    [
        ("saved", 6, 6),  # with a row and a validation due
        ("on_validation_epoch_end", 6, 6),
        ("on_validation_epoch_end", 12, 12),  # the final score
        ("on_train_batch_start", 8, 6),  # the validation at 6 is in the log already
    ],
)
def test_the_joined_log_of_a_killed_and_resumed_run_is_that_of_the_whole_one(whole, tmp_path, hook, step, resumed_at):
    kill = ["--trainer.callbacks+=tests.cli.signalling.KillIn", f"--trainer.callbacks.hook={hook}",
            f"--trainer.callbacks.step={step}"]  # fmt: skip
    assert fork("-m", "cm_lightning", "fit", TOY, *kill, cwd=tmp_path, check=False).returncode == -9
    assert read_checkpoint("runs/toy/version_0")["global_step"] == resumed_at
    main(["fit", TOY, "--ckpt_path=last"])
    killed, resumed = curve("runs/toy/version_0", before=resumed_at), curve("runs/toy/version_1")
    assert sorted([*killed, *resumed]) == whole
    assert read_checkpoint("runs/toy/version_1")["global_step"] == 12
    with pytest.raises(SystemExit) as stop:  # which is done now
        main(["fit", TOY, "--ckpt_path=last"])
    assert stop.value.code == 0
    assert not Path("runs/toy/version_2").exists()


def test_a_run_that_is_resumed_in_its_own_folder_has_each_row_once(whole, tmp_path):
    own = "--trainer.logger.init_args.version=own"
    kill = ["--trainer.callbacks+=tests.helpers.KillAt", "--trainer.callbacks.step=8"]
    assert fork("-m", "cm_lightning", "fit", TOY, own, *kill, cwd=tmp_path, check=False).returncode == -9
    with open("runs/toy/own/metrics.csv", "a") as file:
        file.write("0,1")  # a row of which a kill left a part
    main(["fit", TOY, own, "--ckpt_path=last"])
    assert curve("runs/toy/own") == whole


def write(writer, step, **values):
    writer.log_metrics(values, step)
    writer.save()


def test_a_value_of_a_step_is_written_once():
    writer = Rows(".", 0)
    write(writer, 1, loss=torch.tensor(0.5), epoch=0)
    write(writer, 1, loss=0.5, epoch=0)
    write(writer, 1, loss=0.5, epoch=0, rate=2.0)
    write(writer, 2, loss=0.5, epoch=0)
    write(writer, 2, epoch=0)
    write(writer, 3, loss=math.nan, epoch=0)
    write(writer, 3, loss=math.nan, epoch=0)
    assert [(row["step"], row["loss"], row["rate"]) for row in read()] == [
        ("1", "0.5", ""), ("1", "", "2.0"), ("2", "0.5", ""), ("3", "nan", "")
    ]  # fmt: skip


def test_new_columns_keep_the_rows_and_a_failure_in_the_rewrite_loses_none(monkeypatch):
    writer = Rows(".", 0)
    write(writer, 1, a=1.0)
    before = Path("metrics.csv").read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.csv.DictWriter, "writerows", full)
        with pytest.raises(DataError) as caught:
            write(writer, 2, b=2.0)
    assert str(caught.value) == (
        "./metrics.csv cannot be written (No space left on device): free space there, and resume the run"
    )
    assert Path("metrics.csv").read_text() == before
    assert [path.name for path in Path().iterdir()] == ["metrics.csv"]
    again = Rows(".", 2)
    write(again, 2, b=2.0)
    assert [(row["step"], row["a"], row["b"]) for row in read()] == [("1", "1.0", ""), ("2", "", "2.0")]


@pytest.mark.parametrize("rest", ["3,", "3", '"', "3,1.0,extra\n", "\n3"])
def test_a_part_of_a_row_is_left_out(rest):
    write(Rows(".", 0), 1, a=1.0)
    with open("metrics.csv", "a") as file:
        file.write(rest)
    write(Rows(".", 9), 9, a=9.0)
    assert [row["step"] for row in read()] == ["1", "9"]


def checkpoint(batches, epoch=0, ended=False, last=False, steps=None):
    total = {"ready": batches, "processed": batches, "completed": batches - (not ended)}
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"total": total, "is_last_batch": last}}}
    return {"loops": loops, "epoch": epoch, "global_step": steps or batches}


EVERY_3 = {"val_check_interval": 3, "check_val_every_n_epoch": None}
EVERY_EPOCH = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}
EVERY_2_EPOCHS = {"val_check_interval": 1.0, "check_val_every_n_epoch": 2}


@pytest.mark.parametrize(
    ("options", "state", "log", "missing"),
    [
        (EVERY_3, checkpoint(6), "step,val/loss\n5,\n", True),
        (EVERY_3, checkpoint(6), "step,train/loss\n5,1.0\n", True),
        (EVERY_3, checkpoint(6), "step,val/loss\n2,1.0\n", True),
        (EVERY_3, checkpoint(6), "step,val/loss\n5,\n5,1.0\n", False),
        (EVERY_3, checkpoint(6), None, False),
        (EVERY_3, checkpoint(7), "step,val/loss\n", False),
        (EVERY_3, checkpoint(12, steps=4), "step,val/loss\n3,1.0\n", False),
        (EVERY_3 | {"limit_val_batches": 0}, checkpoint(6), "step,val/loss\n", False),
        (EVERY_EPOCH, checkpoint(5, last=True), "step,val/loss\n", True),
        (EVERY_EPOCH, checkpoint(5, epoch=1, last=True, ended=True), "step,val/loss\n", True),
        (EVERY_EPOCH, checkpoint(4), "step,val/loss\n", False),
        (EVERY_2_EPOCHS, checkpoint(5, last=True), "step,val/loss\n", False),
        (EVERY_2_EPOCHS, checkpoint(10, epoch=1, last=True), "step,val/loss\n", True),
        ({"val_check_interval": 0.5}, checkpoint(5, last=True), "step,val/loss\n", False),
    ],
)
def test_a_validation_is_missing_if_it_was_due_and_is_not_in_the_log(options, state, log, missing, tmp_path):
    if log is not None:
        Path("metrics.csv").write_text(log)
    assert is_missing(state, Path("checkpoints/last.ckpt").absolute(), trainer(tmp_path, **options)) == missing
