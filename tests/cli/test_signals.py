"""Signals that end a training: what is saved, on which ranks, and the exit status."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.errors import ConfigError
from cm_lightning.interrupt import Listener, uninterrupted
from cm_lightning.lock import Owner
from cm_lightning.trainer_options import require_one_run
from tests.processes import CONF, fork

TOY = f"--config={CONF}/toy.yaml"
ONE_JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "fit", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
           "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


def fit(*options):
    main(["fit", TOY, *options])


def stopped(*options):
    """The exit status."""
    with pytest.raises(SystemExit) as stop:
        fit(*options)
    return stop.value.code


def signal_at(hook, step, number):
    return ["--trainer.callbacks+=tests.helpers.SignalAt", f"--trainer.callbacks.hook={hook}",
            f"--trainer.callbacks.step={step}", f"--trainer.callbacks.number={int(number)}"]  # fmt: skip


def test_sigterm_saves_the_step_and_asks_to_be_queued_again(capsys):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert stopped(*signal_at("on_validation_epoch_end", 6, signal.SIGTERM)) == 75
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert read_checkpoint("runs/toy")["global_step"] == 6
    assert not Path("runs/toy/version_0/finished.json").exists()
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("exit status")] == [
        "exit status 75: it is not finished, so queue it again"
    ]


@pytest.fixture
def job(monkeypatch, tmp_path):
    """The environment of a job of SLURM, with a ``scontrol`` that notes how it was called."""
    for name, value in ONE_JOB.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")


def test_a_job_that_queues_itself_again_continues_with_its_own_run_alone(job, monkeypatch, log):
    Path("hpc_ckpt_1.ckpt").write_text("of another run")
    slow = signal_at("on_before_optimizer_step", 4, signal.SIGUSR1)
    assert stopped(*slow) == 75
    assert Path("asked").read_text() == "requeue 7\n"
    assert [path.name for path in Path().rglob("hpc_ckpt*")] == ["hpc_ckpt_1.ckpt"]  # and it was not taken
    assert Owner.of(Path("runs/toy/version_0")).job == "7"

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fit(*slow)
    said = "job 7 was queued again: it resumes runs/toy/version_0/checkpoints/last.ckpt"
    assert said in log
    assert read_checkpoint("runs/toy/version_1")["global_step"] == 12
    log.clear()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    fit("--trainer.max_steps=2")
    assert not any("queued again" in line for line in log)
    assert read_checkpoint("runs/toy/version_2")["global_step"] == 2


def test_ctrl_c_that_python_swallows_ends_the_run_all_the_same():
    options = ["--trainer.callbacks+=tests.cli.signalling.SwallowedAt", "--trainer.callbacks.step=5"]
    assert stopped(*options) == 130
    assert read_checkpoint("runs/toy")["global_step"] == 5


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_to_all_processes_of_a_run_with_loaders_saves_the_step(tmp_path, number, status):
    group = ["--trainer.callbacks+=tests.cli.signalling.GroupSignalAt", f"--trainer.callbacks.number={int(number)}"]
    done = fork("-m", "cm_lightning", "fit", TOY, "--data.num_workers=2", *group, cwd=tmp_path, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert read_checkpoint("runs/toy")["global_step"] == 5


def test_sigterm_to_one_rank_ends_both_after_the_same_step(tmp_path):
    ranks = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    one = ["--trainer.callbacks+=tests.cli.signalling.RankSignalAt", "--trainer.callbacks.rank=1",
           "--trainer.callbacks.step=7"]  # fmt: skip
    note = {"CM_LIGHTNING_RUN_FILE": str(tmp_path / "run.json")}
    done = fork("-m", "cm_lightning", "fit", TOY, *ranks, *one, cwd=tmp_path, check=False, env=note)
    assert done.returncode == 75, done.stderr
    assert json.loads((tmp_path / "run.json").read_text()) == {"directory": "runs/toy/version_0", "finished": False}
    checkpoint = read_checkpoint("runs/toy")
    assert checkpoint["global_step"] == 9  # the other rank hears of step 8's signal while step 9 runs
    assert len(checkpoint["random_states"]) == 2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
         "torchrun started 4 processes, and each would train alone: give --trainer.strategy ddp --trainer.devices 2 "
         "--trainer.num_nodes 2, or start one"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
         "srun started 8 processes, and each would train alone: give --trainer.strategy ddp --trainer.devices 4 "
         "--trainer.num_nodes 2, or start one"),
        ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, "mpirun started 3 processes"),
    ],
)  # fmt: skip
def test_ranks_without_a_strategy_are_refused(environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        require_one_run(1)
    assert message in str(caught.value)
    require_one_run(2)


@pytest.mark.parametrize("environment", [
    {}, {"WORLD_SIZE": "4"}, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}, {"SLURM_NTASKS": "4"},
    {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
])  # fmt: skip
def test_one_process_may_train_alone(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    require_one_run(1)


def test_the_command_line_refuses_them(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert stopped() == 2
    assert "mpirun started 2 processes" in capsys.readouterr().err
    assert not Path("runs").exists()


class Ended(Exception):
    """The listener acted."""


def act(number):
    raise Ended(number)


@pytest.fixture
def listener():
    heard = Listener(act)
    heard.listen(signal.SIGUSR1)
    yield heard
    heard.close()


def press(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_listener_acts_at_once_and_remembers(listener, number):
    with pytest.raises(Ended):
        press(number)
    assert listener.received == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_what_must_not_be_interrupted_is_finished_first(listener, number):
    reached = []

    def work():
        with uninterrupted():
            press(number)
            reached.append("within")
        reached.append("after")

    with pytest.raises(Ended):
        work()
    assert reached == ["within"]


def test_a_second_ctrl_c_interrupts_a_listener_that_waits():
    heard = Listener(lambda number: None)
    heard.listen()
    try:
        press(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            press(signal.SIGINT)
    finally:
        heard.close()


def test_a_listener_hands_its_signals_back():
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(kind) for kind in kinds]
    heard = Listener(act)
    heard.listen(signal.SIGUSR1)
    heard.listen()
    heard.close()
    heard.close()
    assert [signal.getsignal(kind) for kind in kinds] == before
