"""Sweeps with problems: trials that fail, metrics that are not logged, interruptions, damaged and shared folders."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cm_lightning.commands import sweep as command
from cm_lightning.commands.sweep import main as sweep
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.sweep.definition import read_sweep
from cm_lightning.sweep.search import make_search
from cm_lightning.sweep.trials import Records, Trial, _rank, alone

FAKE = Path(__file__).with_name("fake_run.py")
ROOT = Path(__file__).parents[2]
FOLDER = Path("runs/sweeps/fake")


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(*values, metric="val/loss", **content):
    whole = {
        "name": "fake",
        "method": "grid",
        "metric": {"name": metric},
        "command": ["${interpreter}", str(FAKE), "${args}"],
        "parameters": {"x": {"values": list(values)}},
        **content,
    }
    Path("s.yaml").write_text(yaml.safe_dump(whole))
    return "s.yaml"


def results(folder=FOLDER):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def status(*arguments):
    """The exit status of the command in this process."""
    try:
        sweep(list(arguments))
    except SystemExit as stop:
        return stop.code
    return 0


def no_trial(*_):
    pytest.fail("a trial has run")


def test_failures_are_counted_named_and_tried_again(capsys, monkeypatch):
    assert status(write(3, 7, 2)) == 1
    said = capsys.readouterr()
    assert said.err == "error: 1 of 3 trials failed (2): --retry_failed runs them again\n"
    lines = said.out.splitlines()
    assert lines[0] == "trial 1 of 3: {'x': 3}"
    assert lines[2].startswith("trial 2 of 3 (about 0 s left): {'x': 7}")
    assert lines[4] == "  seven does not work  (runs/sweeps/fake/trials/0002.log)"
    before = {number: Records(FOLDER).path(number, ".json").read_bytes() for number in (1, 3)}
    for option in ("--resume", "--retry-failed", "--retry_failed"):
        assert status("s.yaml", option) == 1
        assert ("trial 2 of 3" in capsys.readouterr().out) is (option != "--resume")
    monkeypatch.setattr(command, "run_trial", lambda _, trial, records, __: (finish(trial), records.write(trial)))
    assert status("s.yaml", "--retry-failed") == 0
    assert {row["trial"]: row["state"] for row in results()} == {"1": "finished", "2": "finished", "3": "finished"}
    assert {number: Records(FOLDER).path(number, ".json").read_bytes() for number in (1, 3)} == before


def finish(trial):
    trial.state = "finished"


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("val/los", "error: no trial logged val/los; perhaps val/loss is meant; they logged val/loss: correct metric."),
        ("fid", "error: no trial logged fid; they logged val/loss: correct metric.name in s.yaml, and --resume ranks"),
    ],
)
def test_a_metric_that_nobody_logs_is_a_failure_with_the_names(metric, expected, capsys):
    assert status(write(3, 2, metric=metric)) == 1
    said = capsys.readouterr()
    assert said.err.startswith(expected)
    assert len(said.err.splitlines()) == 1
    assert f"  it did not log {metric}, which ranks the trials" in said.out.splitlines()[2]  # after the first already
    assert status(write(3, 2), "--resume") == 0  # nothing runs again
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "s.yaml has changed since these trials were made: metric"
    assert [row["trial"] for row in results()] == ["2", "1"]


def test_a_metric_is_not_blamed_where_every_trial_failed(capsys):
    assert status(write(7, metric="fid")) == 1
    assert capsys.readouterr().err == "error: 1 of 1 trials failed (1): --retry_failed runs them again\n"


def test_both_faults_are_said(capsys):
    assert status(write(7, 3, metric="fid")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line[:28] for line in lines] == ["error: 1 of 2 trials failed ", "error: no trial logged fid; "]


def test_a_sweep_without_a_metric_is_not_a_failure():
    write(3)
    assert status(str(rewritten(metric=None))) == 0
    assert results()[0]["metric"] == ""


def rewritten(**content):
    path = Path("s.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **content}))
    return path


@pytest.mark.parametrize(
    ("goal", "target", "trials"), [("minimize", 1.5, 1), ("minimize", 0.5, 2), ("maximize", 0, 1), ("maximize", 9, 3)]
)
def test_a_target_ends_the_sweep_when_a_trial_reaches_it(goal, target, trials, capsys):
    write(3, 2, 4)  # of which the scores are 1.33, 0.33 and 4.33
    rewritten(metric={"name": "val/loss", "goal": goal, "target": target})
    assert status("s.yaml") == 0
    assert len(results()) == trials
    assert (f"has reached metric.target, {target}: no more trials" in capsys.readouterr().out) is (trials < 3)


@pytest.mark.parametrize(("goal", "expected"), [("minimize", "3 2 nan 8"), ("maximize", "2 3 nan 8")])
def test_nan_ranks_behind_numbers_and_is_shown(goal, expected, capsys):
    records = Records(FOLDER)
    for number, (x, score) in enumerate([("nan", "nan"), ("8", None), ("2", "4.0"), ("3", "1.0")], 1):
        directory = Path("runs", x)
        directory.mkdir(parents=True)
        (directory / "metrics.csv").write_text(f"step,val/loss\n0,0.5\n1,{score}\n" if score else "step\n0\n")
        records.path(number, ".json").parent.mkdir(parents=True, exist_ok=True)
        records.write(Trial(number, {"x": x}, "finished", str(directory), 1.0))
    assert status(write("nan", "8", "2", "3", metric="val/loss"), "--resume") == 0
    rewritten(metric={"name": "val/loss", "goal": goal})
    assert status("s.yaml", "--resume") == 0
    assert " ".join(row["x"] for row in results()) == expected
    assert [row["val/loss"] for row in results()][2:] == ["nan", ""]
    assert "       nan  trial 1 (finished)" in capsys.readouterr().out


def test_a_metric_that_is_being_written_does_not_break_the_sweep():
    Path("metrics.csv").write_text("step,val/loss\n0,0.5\n1,\n2,1e-\n3,0.25\n4\n5,1,2,3\n")
    trial = Trial(1, {}, "running", ".")
    assert trial.history("val/loss") == [0.5, 0.25, 1.0]
    assert trial.history("fid") == []
    assert trial.logged() == {"val/loss"}


def test_null_survives_records_resume_and_results():
    parameters = {"x": {"values": [3, 2]}, "clip": {"values": [None, 1.0]}}
    assert status(write(parameters=parameters), "--count=2") == 0
    assert json.loads(Records(FOLDER).path(1, ".json").read_text())["values"] == {"clip": None, "x": 3}
    assert read_sweep("s.yaml").command_line({"clip": None, "x": 3})[2:] == ["--clip=None", "--x=3"]
    assert status("s.yaml", "--resume") == 0
    assert sorted((row["clip"], row["x"]) for row in results()) == [
        ("1.0", "2"), ("1.0", "3"), ("None", "2"), ("None", "3")
    ]  # fmt: skip
    assert len(list(FOLDER.glob("trials/*.json"))) == 4


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "to resume: cm-lightning sweep 'my sweep.yaml' --resume"),
        (["--output=a b"], "to resume: cm-lightning sweep 'my sweep.yaml' '--output=a b' --resume"),
        (["--resume", "--retry-failed"], "to resume: cm-lightning sweep 'my sweep.yaml' --resume --retry-failed"),
    ],
)  # fmt: skip
def test_an_interruption_says_how_to_resume(kind, options, expected, monkeypatch, capsys):
    Path(write(3, 2)).rename("my sweep.yaml")
    monkeypatch.setattr(command, "run_trial", lambda *_: os.kill(os.getpid(), kind))
    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt):
        sweep(["my sweep.yaml", *options])
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_a_changed_file_is_said_once(capsys):
    write(3, program="a.py")
    assert status("s.yaml") == 0
    assert "has changed" not in capsys.readouterr().out
    assert status("s.yaml", "--resume") == 0
    assert "has changed" not in capsys.readouterr().out
    parameters = {"x": {"values": [3, 2]}, "y": {"value": 1}}
    write(program="b.py", parameters=parameters, run_cap=1)
    assert status("s.yaml", "--resume") == 0
    said = "s.yaml has changed since these trials were made: program, parameters.x, run_cap, parameters.y"
    assert sorted(capsys.readouterr().out.splitlines()[0].split(": ")[1].split(", ")) == sorted(
        said.split(": ")[1].split(", ")
    )
    assert status("s.yaml", "--resume") == 0
    assert "has changed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[1]", "[]", "null", "3", '"text"'])
def test_a_definition_damaged_by_hand_is_written_anew(content):
    assert status(write(3)) == 0
    whole = (FOLDER / "sweep.json").read_text()
    (FOLDER / "sweep.json").write_text(content)
    assert status("s.yaml", "--resume") == 0
    assert (FOLDER / "sweep.json").read_text() == whole


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "must be a mapping"),
        ("{}", "missing 2 required positional arguments"),
        ('{"number": 1, "values": {}, "colour": 1}', "unexpected keyword argument 'colour'"),
        ('{"number": 2, "values": {}, "state": "failed"}', "number is 2"),
        ('{"number": "one", "values": {}}', "format"),
        ('{"number": 1, "values": 3}', "values is 3"),
        ('{"number": 1, "values": {}, "state": "done"}', "state is 'done'"),
        ('{"number": 1, "values": {}, "directory": 3}', "directory is 3"),
        ('{"number": 1, "values": {}, "seconds": "long"}', "seconds is 'long'"),
        ("\udcff", "codec can't decode"),
    ],
)
def test_a_damaged_record_is_named(content, reason, monkeypatch):
    records = Records(FOLDER)
    records.path(1, ".json").parent.mkdir(parents=True)
    records.write(Trial(2, {"x": 2}, "finished"))
    records.path(1, ".json").write_text(content, errors="surrogateescape")
    monkeypatch.setattr(command, "run_trial", no_trial)
    with pytest.raises(DataError) as refused:
        sweep([write(3, 2), "--resume"])
    line = str(refused.value)
    assert line.startswith("runs/sweeps/fake/trials/0001.json is not a trial's record (")
    assert line.endswith("): restore it, or remove it and --resume")
    assert reason in line
    assert "\n" not in line


def test_a_record_that_was_removed_does_not_cost_another():
    assert status(write(3, 2, 4)) == 0
    Records(FOLDER).path(2, ".json").unlink()
    (FOLDER / "trials/.0002.host.7.json").write_text("{")  # what a killed process left behind
    assert status("s.yaml", "--resume") == 0
    assert [(trial.number, trial.values["x"]) for trial in Records(FOLDER).read()] == [(1, 3), (3, 4), (4, 2)]


def test_random_continues_with_new_draws_behind_a_removed_record():
    search = make_search(read_sweep(write(method="random", parameters={"x": {"min": 0.0, "max": 1.0}})))
    third = search.propose([Trial(1, {}), Trial(2, {})])
    fourth = search.propose([Trial(1, {}), Trial(2, {}), Trial(3, third)])
    assert search.propose([Trial(1, {}), Trial(3, third)]) == fourth != third


@pytest.mark.parametrize("option", ["file", "file/below", "trials-is-a-file", "results-is-a-folder"])
def test_an_output_that_cannot_be_written_is_refused_first(option, monkeypatch):
    Path("file").write_text("")
    Path("trials-is-a-file").mkdir()
    Path("trials-is-a-file/trials").write_text("")
    Path("results-is-a-folder/results.csv").mkdir(parents=True)
    monkeypatch.setattr(command, "run_trial", no_trial)
    with pytest.raises(ConfigError, match=f"^--output {option}/"):
        sweep([write(3), f"--output={option}"])
    assert not list(Path().rglob("*.json"))


def test_a_program_that_does_not_exist_is_refused_first():
    with pytest.raises(ConfigError, match=r"s.yaml: command begins with 'pyhton', which is not a program on PATH"):
        sweep([write(3, command=["pyhton", "${args}"])])
    assert not Path("runs").exists()


def test_a_trial_that_cannot_be_started_has_failed(capsys):
    assert status(write("x" * 131_070, 3)) == 1  # longer than a command may be
    assert "error: [Errno 7] Argument list too long" in capsys.readouterr().out
    assert {row["trial"]: row["state"] for row in results()} == {"1": "failed", "2": "finished"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os.kill(os.getpid(), 9)", "error: it was ended by signal 9 (Killed): the system does so"),
        ("import os; os.kill(os.getpid(), 11)", "error: it was ended by signal 11 (Segmentation fault)"),
        ("print('10%')", "error: it ended with status 0, but before its run was finished"),
        ("print('error: mine'); exit(3)", "error: mine"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("exit(3)", "there was no output"),
    ],
)  # fmt: skip
def test_a_trial_that_ends_badly_is_reported_by_why(code, expected, capsys):
    assert status(write(3, command=["${interpreter}", "-c", code, "${args}"])) == 1
    assert capsys.readouterr().out.splitlines()[2].startswith(f"  {expected}")


def test_two_sweeps_do_not_share_a_folder():
    refusal = r"another sweep runs in runs/sweeps/fake: wait until it ends, or give another --output"
    with alone(FOLDER), pytest.raises(ConfigError, match=refusal):
        sweep([write(3)])
    assert not (FOLDER / "trials").exists()
    assert status("s.yaml", f"--output={FOLDER.absolute()}") == 0


def test_a_killed_process_leaves_no_lock():
    code = (
        "import os, pathlib; from cm_lightning.sweep.trials import alone\n"
        "with alone(pathlib.Path('shared')): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    with alone(Path("shared")):
        pass


def test_a_dry_run_by_either_spelling(capsys):
    write(3, 4)
    for option in ("--dry-run", "--dry_run"):
        assert status("s.yaml", option) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
    assert not Path("runs").exists()


class EngineOfTest:
    """A replacement for W&B's package: it proposes in turn, and stops the second trial."""

    SweepRun = SimpleNamespace

    def __init__(self):
        self.definition = None

    def next_run(self, definition, runs):
        self.definition = definition
        return SimpleNamespace(config={"x": {"value": [3, 2][len(runs)]}}) if len(runs) < 2 else None

    def stop_runs(self, _, runs):
        return [run for run in runs if run.name == "2" and run.history]


def test_the_engine_gets_the_checked_definition_and_its_trials_are_counted(monkeypatch, capsys):
    engine = EngineOfTest()
    monkeypatch.setitem(sys.modules, "sweeps", engine)
    early = {"type": "hyperband", "max_iter": 9, "s": 2}
    parameters = {"x": {"values": [3, 2]}, "steps": {"value": 3}}
    assert status(write(parameters=parameters, early_terminate=early)) == 0
    assert capsys.readouterr().out.startswith("trial 1 of 2: {'x': 3}")
    assert engine.definition["early_terminate"] == early
    assert engine.definition["metric"] == {"goal": "minimize", "name": "val/loss"}
    bayes = {"x": {"distribution": "log_uniform_values", "min": "1e-5", "max": "1e-2"}}
    write(method="bayes", parameters=bayes)
    with pytest.raises(ConfigError, match="a bayes search does not end by itself: give --count"):
        sweep(["s.yaml"])
    assert status("s.yaml", "--count=1", "--dry-run") == 0
    assert engine.definition["parameters"]["x"] == {**bayes["x"], "min": 1e-5, "max": 1e-2}


def test_infinite_scores_rank_behind_numbers():
    order = [float("nan"), float("inf"), float("-inf"), 2.0, None, 1.0]
    for minimize, first in ((True, [1.0, 2.0]), (False, [2.0, 1.0])):
        ranked = sorted(order, key=lambda score: _rank(score, minimize))
        assert ranked[:2] == first
        assert ranked[-1] is None


def test_draws_too_large_for_a_number_are_refused_before_anything_is_made():
    command_line = "command: ['${interpreter}', '${args}']\n"
    draws = "parameters:\n  x: {distribution: log_normal, mu: 10000, sigma: 1}\n"
    Path("large.yaml").write_text(f"method: random\nrun_cap: 2\n{command_line}{draws}")
    with pytest.raises(ConfigError, match="parameter x: its draws are too large"):
        sweep(["large.yaml"])
    assert not Path("runs").exists()
