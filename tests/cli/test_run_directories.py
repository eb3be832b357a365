"""The directories of runs: when they are made, and which checkpoint a folder refers to."""

import csv
import os
import shlex
import signal
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.save_last import SaveLast
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.commands.sample import main as sample
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.modules.loading import load_module
from cm_lightning.report.runs import read_runs
from cm_lightning.run import claim_version, find_checkpoint, find_export, last_checkpoint
from tests.helpers import few_digits

CONF = Path(__file__).parents[1] / "conf"
TOY = f"--config={CONF}/toy.yaml"
SHORT = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


def fit(*options):
    main(["fit", TOY, *options])


def error(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 2
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")][-1]


def files(folder="."):
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())


def made(path, *checkpoints, finished=False):
    """A version as a run leaves it."""
    for name in checkpoints:
        file = Path("runs/x", path, "checkpoints", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    Path("runs/x", path).mkdir(parents=True, exist_ok=True)
    (Path("runs/x") / path / "config.yaml").touch()
    if finished:
        (Path("runs/x") / path / "finished.json").touch()


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.no_such_option=1"],
        ["--trainer.max_steps=many"],
        ["--model.image_shape=[3]"],
        ["--data=FashionMNIST", "--data.root=nowhere"],
        ["--model=DiffusionModule", "--model.start_from=nowhere.ckpt"],
        ["--ckpt_path=nowhere.ckpt"],
        ["--ckpt_path=last"],
        ["--trainer.callbacks+=Quality"],
        ["--trainer.callbacks+=tests.helpers.FailAt", "--trainer.callbacks.hook=on_fit_start"],
        ["--trainer.callbacks+=tests.helpers.FailAt", "--trainer.callbacks.hook=on_train_start"],
        ["--trainer.callbacks+=tests.helpers.FailAt", "--trainer.callbacks.hook=on_train_batch_start"],
        ["--trainer.callbacks+=tests.helpers.FailAt", "--trainer.callbacks.hook=on_before_optimizer_step"],
        ["--trainer.num_sanity_val_steps=1", "--trainer.callbacks+=tests.helpers.FailAt",
         "--trainer.callbacks.hook=on_validation_epoch_end"],
    ],
)  # fmt: skip
def test_a_start_that_fails_leaves_nothing(options):
    with pytest.raises(SystemExit) as stop:
        fit(*options)
    assert stop.value.code == 2
    assert files() == []
    assert not list(Path().rglob("version_*"))


def test_the_first_run_after_starts_that_failed_is_the_first():
    late = ["--trainer.callbacks+=tests.helpers.FailAt", "--trainer.callbacks.hook=on_before_optimizer_step"]
    for options in (["--trainer.max_steps=many"], ["--ckpt_path=last"], late):
        with pytest.raises(SystemExit):
            fit(*options)
    fit(*SHORT)
    assert os.listdir("runs/toy") == ["version_0"]


def test_every_run_has_a_directory_of_its_own_without_a_csv_log(capsys):
    for logger in ("--trainer.logger=false", "--trainer.logger=tests.helpers.NoFiles"):
        fit(logger, *SHORT)
    fit("--trainer.logger=false", *SHORT, "--trainer.default_root_dir=elsewhere")
    names = ["checkpoints/last.ckpt", "config.yaml", "finished.json"]
    for folder in ("runs/ConsistencyTraining/version_0", "runs/ConsistencyTraining/version_1",
                   "elsewhere/ConsistencyTraining/version_0"):  # fmt: skip
        assert [name for name in names if (Path(folder) / name).is_file()] == names
    fit("--trainer.logger=false", "--ckpt_path=last", "--trainer.max_steps=4")
    config = yaml.safe_load(Path("runs/ConsistencyTraining/version_2/config.yaml").read_text())
    assert config["ckpt_path"] == "runs/ConsistencyTraining/version_1/checkpoints/last.ckpt"
    assert not Path("checkpoints").exists()


class Writer:
    """Like torch's writer for TensorBoard, which is not a requirement here: it makes its directory at once."""

    def __init__(self, log_dir, **_):
        self.file = Path(log_dir) / "events"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch()

    def add_scalar(self, name, value, step):
        with self.file.open("a") as file:
            file.write(f"{name} {step}\n")

    def __getattr__(self, name):
        return lambda *_, **__: None


@pytest.fixture
def tensorboard(monkeypatch):
    from lightning.fabric.loggers import tensorboard

    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    return "{class_path: TensorBoardLogger, init_args: {save_dir: runs, name: board}}"


def test_tensorboard_alone_gives_the_directory(tensorboard, monkeypatch):
    for _ in range(2):
        fit(f"--trainer.logger={tensorboard}", *SHORT)
    for version in ("version_0", "version_1"):
        found = [str(Path(file).relative_to(f"runs/board/{version}")) for file in files(f"runs/board/{version}")]
        assert set(found) >= {"checkpoints/last.ckpt", "config.yaml", "events"}
    assert "train/loss 1" in Path("runs/board/version_0/events").read_text()
    fit(f"--trainer.logger={tensorboard}", "--trainer.max_steps=4", "--ckpt_path=last")
    assert read_checkpoint("runs/board/version_2")["global_step"] == 4


def test_tensorboard_before_the_csv_log_changes_nothing(tensorboard):
    csv_log = "{class_path: CSVLogger, init_args: {save_dir: runs, name: toy}}"
    Path("runs/board/version_4").mkdir(parents=True)
    fit(f"--trainer.logger=[{tensorboard}, {csv_log}]", *SHORT)
    fit(f"--trainer.logger=[{tensorboard}, {csv_log}]", "--trainer.max_steps=4", "--ckpt_path=last")
    assert read_checkpoint("runs/toy/version_6")["global_step"] == 4  # one number for both logs
    assert Path("runs/board/version_6/events").is_file()
    assert not list(Path("runs/board").rglob("*.ckpt"))


def rows(path):
    with open(path, newline="") as file:
        return [(int(row["step"]), row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_a_named_version_is_gone_on_with_and_never_overwritten(capsys):
    seed0 = ["--trainer.logger.init_args.version=seed0", "--trainer.logger.flush_logs_every_n_steps=1"]
    fit(*seed0, "--trainer.max_steps=8")
    before = rows("runs/toy/seed0/metrics.csv")
    assert [step for step, _ in before] == [1, 3, 5, 7]
    fit(*seed0, "--ckpt_path=last")
    after = rows("runs/toy/seed0/metrics.csv")
    assert after[:4] == before
    assert [step for step, _ in after] == [1, 3, 5, 7, 9, 11]
    kept = {file: Path(file).read_bytes() for file in files("runs/toy/seed0")}

    line = error(capsys, "fit", TOY, *seed0)
    assert "trainer.logger.init_args.version: runs/toy/seed0 already holds a run" in line
    assert "--ckpt_path runs/toy/seed0" in line
    fit("--trainer.logger.init_args.version=seed1")
    assert "already holds a run" in error(capsys, "fit", TOY, *seed0, "--ckpt_path=runs/toy/seed1")
    main(["test", "--config=runs/toy/seed0/config.yaml", "--ckpt_path=last"])  # beside it, not into it
    assert {file: Path(file).read_bytes() for file in files("runs/toy/seed0")} == kept
    assert sorted(os.listdir("runs/toy")) == ["seed0", "seed1", "version_0"]


def test_last_is_of_the_version_that_is_named(capsys):
    fit("--trainer.logger.init_args.version=seed0", *SHORT)
    fit("--trainer.logger.init_args.version=seed1", *SHORT)
    fit("--trainer.logger.init_args.version=seed0", "--ckpt_path=last", "--trainer.max_steps=4")
    assert [read_checkpoint(f"runs/toy/seed{n}")["global_step"] for n in (0, 1)] == [4, 2]
    assert "runs/toy has several versions, seed0, seed1: name one" in error(capsys, "fit", TOY, "--ckpt_path=last")
    assert "no checkpoint below runs/toy/seed2" in error(
        capsys, "fit", TOY, "--ckpt_path=last", "--trainer.logger.init_args.version=seed2"
    )


def test_rows_of_after_the_checkpoint_are_replaced():
    few = "--callbacks.throughput=null"
    seed0 = ["--trainer.logger.init_args.version=seed0", "--trainer.logger.flush_logs_every_n_steps=1", few]
    with pytest.raises(SystemExit):
        fit(*seed0, "--trainer.callbacks+=tests.helpers.FailAt", "--trainer.callbacks.step=9")
    assert [step for step, _ in rows("runs/toy/seed0/metrics.csv")] == [1, 3, 5, 7]
    assert read_checkpoint("runs/toy/seed0")["global_step"] == 6
    fit(*seed0, "--ckpt_path=last")
    assert [step for step, _ in rows("runs/toy/seed0/metrics.csv")] == [1, 3, 5, 7, 9, 11]
    assert [run.directory.name for run in read_runs(["runs/toy/seed0"])] == ["seed0"]  # it is not its own origin


@pytest.mark.parametrize("steps", ["true", "3"])
def test_fast_dev_run_leaves_nothing(steps, monkeypatch):
    few_digits(monkeypatch)
    main(["fit", f"--config={CONF}/image.yaml", f"--trainer.fast_dev_run={steps}"])
    assert files() == []


def test_what_is_told_to_a_log_before_it_has_a_file_is_kept():
    fit(*SHORT, "--trainer.log_every_n_steps=1", "--trainer.callbacks+=LearningRateMonitor")
    with open("runs/toy/version_0/metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["lr-RAdam"]] == ["0", "1"]


LAST = "checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("versions", "asked", "found"),
    [
        ({"version_0": True, "version_1": True}, "runs/x", f"version_1/{LAST}"),
        ({"version_0": True, "version_1": False}, "runs/x", f"version_0/{LAST}"),
        ({"version_0": False, "version_1": False}, "runs/x", f"version_1/{LAST}"),
        ({"version_2": True, "version_10": True}, "runs/x", f"version_10/{LAST}"),
        ({"version_2": True, "version_10": True}, "runs/x/", f"version_10/{LAST}"),
        ({"version_0": True, "version_1": False}, "runs/x/version_1", f"version_1/{LAST}"),
        ({"version_0": True}, "runs/x/version_0/checkpoints", f"version_0/{LAST}"),
        ({"version_0": True}, f"runs/x/version_0/{LAST}", f"version_0/{LAST}"),
        ({"seed0": True}, "runs/x", f"seed0/{LAST}"),
        ({"seed0": True, "version_0": False}, "runs/x", f"seed0/{LAST}"),
        ({"seed0": True, "seed1": True, "version_3": True}, "runs/x", f"version_3/{LAST}"),
        ({"seed0": True, "seed1": False}, "runs/x", f"seed0/{LAST}"),
    ],
)
def test_a_folder_stands_for_a_checkpoint(versions, asked, found):
    for version, finished in versions.items():
        made(version, "last.ckpt", finished=finished)
    made("version_30")  # a test, or a training that was stopped early
    assert find_checkpoint(asked) == Path("runs/x") / found


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("nowhere", "no checkpoint at nowhere"),
        ("nowhere.ckpt", "no checkpoint at nowhere.ckpt"),
        ("runs/y", "no checkpoint at runs/y; beside it: x"),
        ("runs/x/version_9", "no checkpoint at runs/x/version_9; beside it: version_1"),
        ("runs/x", "runs/x has several versions, seed0, seed1: name one, runs/x/VERSION"),
        ("runs/x/version_1", "no checkpoint below runs/x/version_1"),
        ("runs/empty", "no checkpoint below runs/empty"),
    ],
)
def test_a_folder_without_one_is_named(asked, message):
    made("seed0", "last.ckpt", finished=True)
    made("seed1", "last.ckpt", finished=True)
    made("version_1")
    if asked == "runs/empty":
        Path("runs/empty").mkdir()
    with pytest.raises(CheckpointError) as raised:
        find_checkpoint(asked)
    assert str(raised.value).startswith(message)


def test_without_save_last_the_highest_step_counts():
    made("version_0", "epoch=0-step=900.ckpt", "epoch=1-step=1000.ckpt")
    assert find_checkpoint("runs/x").name == "epoch=1-step=1000.ckpt"


def test_last_goes_by_number_and_not_by_time():
    for n in (0, 1, 2):
        made(f"version_{n}", *["last.ckpt"] * (n < 2), finished=n == 0)
    os.utime(f"runs/x/version_0/{LAST}", (2e9, 2e9))
    assert last_checkpoint(Path("runs/x")) == Path(f"runs/x/version_1/{LAST}")


def test_no_two_runs_take_one_version():
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda _: claim_version([Path("runs/x"), Path("runs/y")]), range(64)))
    assert sorted(taken) == list(range(64))


def test_a_run_may_be_named_wherever_a_checkpoint_is_asked_for(capsys):
    teacher = ["--model=DiffusionModule", "--trainer.logger.init_args.name=teacher", *SHORT]
    fit(*teacher)
    fit(*teacher, "--seed_everything=1")  # trained again: this is the one
    newest = f"runs/teacher/version_1/{LAST}"
    fit(*SHORT, "--model=ConsistencyDistillation", "--model.teacher=runs/teacher")
    config = yaml.safe_load(Path("runs/toy/version_0/config.yaml").read_text())
    assert config["model"]["init_args"]["teacher"] == newest
    fit(*SHORT, "--model.start_from=runs/teacher/version_0")
    config = yaml.safe_load(Path("runs/toy/version_1/config.yaml").read_text())
    assert config["model"]["init_args"]["start_from"] == f"runs/teacher/version_0/{LAST}"
    torch.testing.assert_close(load_module("runs/teacher").state_dict(), load_module(newest).state_dict())
    for command in ("validate", "test", "predict"):
        main([command, TOY, "--ckpt_path=runs/toy"])
    sample(["--ckpt_path=runs/toy", "--output=x.npz", "--num_samples=2"])
    assert Path("x.npz").is_file()
    fit("--ckpt_path=runs/toy", "--trainer.max_steps=3", "--model.start_from=null")
    assert read_checkpoint("runs/toy")["global_step"] == 3


def test_a_run_without_a_checkpoint_teaches_nobody(capsys):
    made("version_0")
    student = ["--model=ConsistencyDistillation", "--model.teacher=runs/x"]
    line = error(capsys, "fit", TOY, *student)
    assert "no checkpoint below runs/x: version_0 ended before the first one was written" in line
    assert line.endswith("set --model.teacher to a DiffusionModule's checkpoint")
    assert "no checkpoint below runs/x" in error(capsys, "fit", TOY, "--model.start_from=runs/x")
    with pytest.raises(SystemExit) as stop:
        fit(*student, "--dry_run")
    assert stop.value.code == 0
    assert "--model.start_from edm:x.pkl" in error(capsys, "fit", TOY, "--ckpt_path=edm:x.pkl")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_test_is_not_told_to_leave_its_checkpoint_out(capsys, command):
    line = error(capsys, command, TOY, "--ckpt_path=last")
    assert "no checkpoint below runs/toy; train first with fit, or name the file or run of a checkpoint" in line
    assert "leave" not in line


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The end of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cm-lightning"])
        fit()
    return read_checkpoint(folder / "runs/toy")["state_dict"]


@pytest.mark.parametrize(
    ("number", "hook", "step", "saved"),
    [
        (signal.SIGINT, "on_train_batch_start", 4, 4),
        (signal.SIGINT, "on_before_optimizer_step", 4, 5),  # a step that has begun is finished
        (signal.SIGINT, "on_train_batch_end", 4, 4),
        (signal.SIGINT, "on_validation_epoch_end", 6, 6),
        (signal.SIGINT, "on_validation_end", 6, 6),
        (signal.SIGTERM, "on_before_optimizer_step", 4, 5),
    ],
)
def test_an_interrupted_run_saves_its_last_step_and_says_how_to_resume(whole, capsys, number, hook, step, saved):
    options = ["--trainer.callbacks+=tests.helpers.SignalAt", f"--trainer.callbacks.hook={hook}",
               f"--trainer.callbacks.step={step}", f"--trainer.callbacks.number={int(number)}"]  # fmt: skip
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        fit(*options, "--trainer.max_steps=12")
    assert stop.value.code == (130 if number == signal.SIGINT else 75)
    assert signal.getsignal(signal.SIGINT) == handler
    assert read_checkpoint("runs/toy")["global_step"] == saved
    assert not Path("runs/toy/version_0/finished.json").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("interrupted at")]
    said = f"interrupted at step {saved}; to resume: cm-lightning fit {TOY} "
    assert line.startswith(said)
    assert line.endswith("--ckpt_path runs/toy/version_0")
    command = shlex.split(line.partition("cm-lightning ")[2])
    main([argument for argument in command if ".callbacks" not in argument])
    torch.testing.assert_close(read_checkpoint("runs/toy/version_1")["state_dict"], whole, rtol=0, atol=0)


def test_ctrl_c_before_the_first_step_leaves_nothing(capsys):
    with pytest.raises(SystemExit) as stop:
        fit("--trainer.callbacks+=tests.helpers.SignalAt", "--trainer.callbacks.hook=on_train_start",
            "--trainer.callbacks.step=0")  # fmt: skip
    assert stop.value.code == 130
    assert "interrupted before there was a checkpoint: start again" in capsys.readouterr().err
    assert files() == []


@pytest.mark.parametrize("callback", ["LearningRateFinder", "BatchSizeFinder", "StochasticWeightAveraging",
                                      "EMAWeightAveraging", "GradientAccumulationScheduler"])  # fmt: skip
def test_callbacks_that_do_not_go_together_are_refused(capsys, callback):
    options = {"StochasticWeightAveraging": ["--trainer.callbacks.swa_lrs=0.1"],
               "GradientAccumulationScheduler": ["--trainer.callbacks.scheduling={0: 2}"]}  # fmt: skip
    line = error(capsys, "fit", TOY, f"--trainer.callbacks+={callback}", *options.get(callback, []))
    assert line.startswith(f"error: trainer.callbacks: {callback.removeprefix('EMA')} ")


@pytest.mark.parametrize(
    ("option", "steps"),
    [
        ("--trainer.overfit_batches=2", 12),
        ("--trainer.limit_train_batches=2", 12),
        ("--trainer.limit_train_batches=0.4", 12),
        ("--trainer.max_epochs=2", 10),
        ("--trainer.max_time=00:01:00:00", 12),
        ("--trainer.reload_dataloaders_every_n_epochs=1", 12),
    ],
)
def test_options_of_the_length_work(option, steps):
    fit(option)
    assert read_checkpoint("runs/toy")["global_step"] == steps


@pytest.mark.parametrize(
    ("limit", "accumulate"), [("limit_train_batches=3", 2), ("limit_train_batches=0.5", 2), ("overfit_batches=1", 2)]
)
def test_a_limit_within_a_step_is_refused(capsys, limit, accumulate):
    line = error(capsys, "fit", TOY, f"--trainer.{limit}", f"--trainer.accumulate_grad_batches={accumulate}")
    assert f"trainer.{limit.partition('=')[0]}" in line
    assert "multiple of trainer.accumulate_grad_batches, 2" in line


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_numbers_of_the_callbacks_have_their_domains(value):
    with pytest.raises(ConfigError, match="every_n_train_steps must be a whole number of at least 1"):
        SaveLast(value)
    if value != 0:
        with pytest.raises(ConfigError, match=r"decay must be a number in \[0, 1\)"):
            EMA(value)


def test_a_run_stands_for_its_newest_finished_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for version, finished in (("version_0", True), ("version_2", True), ("version_10", False)):
        Path(f"runs/base/{version}/export").mkdir(parents=True)
        if finished:
            Path(f"runs/base/{version}/finished.json").write_text("{}")
    assert find_export("runs/base") == "runs/base/version_2/export"
    assert find_export("runs/base/version_0") == "runs/base/version_0/export"
    for other in ("runs/base/version_0/export", "runs/none", "owner/model"):
        assert find_export(other) == other
    for seed in ("seed0", "seed1"):
        Path(f"runs/seeds/{seed}/export").mkdir(parents=True)
    assert find_export("runs/seeds/seed1") == "runs/seeds/seed1/export"
    with pytest.raises(CheckpointError, match="several versions, seed0, seed1: name one"):
        find_export("runs/seeds")
