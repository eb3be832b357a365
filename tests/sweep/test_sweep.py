import csv
import os
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest
import yaml

from cm_lightning import cli
from cm_lightning.commands.evaluate import make_parser as evaluate_parser
from cm_lightning.commands.sweep import main as sweep
from cm_lightning.errors import ConfigError
from cm_lightning.sweep.definition import read_sweep
from cm_lightning.sweep.search import Grid, make_search
from cm_lightning.sweep.trials import Records, Trial, run_trial
from tests.processes import CONF, ROOT, fork_trials

SHIPPED = sorted((ROOT / "sweeps").glob("*.yaml"))
FAKE = Path(__file__).with_name("fake_run.py")


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


def write(**content):
    fake = {"method": "grid", "metric": {"name": "val/loss"}, "command": ["${interpreter}", str(FAKE), "${args}"]}
    Path("s.yaml").write_text(yaml.safe_dump({"name": "fake", **fake, **content}, sort_keys=False))
    return "s.yaml"


def grid(*values, **constants):
    constant = {name: {"value": value} for name, value in constants.items()}
    return write(parameters={"x": {"values": list(values)}, **constant})


def results(name="fake"):
    with open(f"runs/sweeps/{name}/results.csv", newline="") as file:
        return list(csv.DictReader(file))


def agent_s_command(raw, values):
    """The command of a trial as wandb's agent builds it (wandb_agent.py), by wandb's own functions."""
    from wandb.sdk.launch.sweeps import utils as wandb_sweeps  # its import takes a second

    args = {"args": {name: {"value": value} for name, value in values.items()}}
    macros = wandb_sweeps.create_sweep_command_args(args)
    macros.update(interpreter=["python"], program=[raw.get("program")], env=["/usr/bin/env"])
    line = []
    for part in map(str, wandb_sweeps.create_sweep_command(list(raw["command"]))):
        line += macros[part[2:-1]] if part.startswith("${") and part.endswith("}") else [part]
    return line


def test_the_command_is_the_one_that_wandb_s_agent_builds(monkeypatch):
    monkeypatch.setenv("GREETING", "hello")
    values = {"a.b": 1.0e-4, "c": True, "d": False, "e": None, "f": "x y"}
    macros = ["args", "args_no_hyphens", "args_no_equals", "args_no_boolean_flags", "args_json", "program", "env"]
    command = ["${interpreter}", "-m", 3, "say-${envvar:GREETING}-${envvar:NOBODY}", *(f"${{{m}}}" for m in macros)]
    path = write(program="train.py", command=command, parameters={"x": {"value": 1}})
    assert read_sweep(path).command_line(values) == agent_s_command(yaml.safe_load(Path(path).read_text()), values)
    with pytest.raises(ConfigError, match=r"command has \$\{nonsense\}: choose one of env"):
        read_sweep(write(command=["${nonsense}"], parameters={})).command_line({})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_trial_of_every_shipped_sweep_parses_and_is_the_agent_s(path, monkeypatch):
    definition, raw = read_sweep(path), yaml.safe_load(path.read_text())
    seen = []
    monkeypatch.setattr(cli._CLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(cli._CLI, "after_instantiate_classes", lambda self: None)
    monkeypatch.setattr(cli._CLI, "_run_subcommand", lambda self, _: seen.append(self.config["fit"]))
    monkeypatch.chdir(ROOT)
    combinations, parsed = Grid(definition).combinations, set()
    for values in combinations:
        line = definition.command_line(values)
        assert line == agent_s_command(raw, values)
        assert line[:4] == ["/usr/bin/env", "python", "-m", "cm_lightning"]
        if line[4] == "evaluate":
            seen.append(vars(evaluate_parser().parse_args(line[5:])))
            assert seen[-1]["model"] == [values["model"]]
        else:
            new = {(name, str(value)) for name, value in values.items()} - parsed
            if not new:  # parsing takes long: each value of each parameter is parsed once
                continue
            parsed |= new
            cli.main(line[4:])
            assert seen[-1]["seed_everything"] == values["seed_everything"]
        assert seen[-1]["wandb"] == ("off" if path.stem == "plane" else "online")  # its runs take seconds
    assert len(combinations) >= 12
    assert seen


def test_results_are_ranked_and_a_failing_trial_does_not_stop_the_others(capsys):
    with pytest.raises(SystemExit) as stop:
        sweep([grid(3, 7, 2, 8)])
    assert stop.value.code == 1
    ranked = results()
    assert [row["trial"] for row in ranked] == ["3", "1", "2", "4"]
    assert [row["state"] for row in ranked] == ["finished", "finished", "failed", "failed"]
    assert float(ranked[0]["val/loss"]) == pytest.approx(1 / 3)
    assert ranked[0]["directory"] == "runs/fake/2"
    out = capsys.readouterr().out
    assert "trial 2: failed after" in out
    assert "seven does not work  (runs/sweeps/fake/trials/0002.log)" in out


def test_a_sweep_is_not_begun_twice_by_mistake():
    sweep([grid(3), "--count=1"])
    with pytest.raises(ConfigError, match=r"has 1 trials: give --resume to continue, or another --output"):
        sweep(["s.yaml"])
    sweep([grid(3, 4), "--resume"])
    assert [row["trial"] for row in results()] == ["1", "2"]
    sweep(["s.yaml", "--output=elsewhere", "--count=1"])
    assert len(list(Path("elsewhere/trials").glob("*.json"))) == 1


def ended(x):
    """Whether the process of the latest run of x has ended."""
    try:
        os.kill(int(Path(f"runs/fake/{x}/process").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_finished_trial_is_lost(how):
    grid(3, 4, hold="go_on")
    command = [sys.executable, "-m", "cm_lightning", "sweep", "s.yaml"]
    with open("out.txt", "w") as out:
        runner = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out)
    records = Records(Path("runs/sweeps/fake"))
    while not Path("runs/fake/4/metrics.csv").exists():
        assert runner.poll() is None
        time.sleep(0.05)
    runner.send_signal(how)
    assert runner.wait(120) == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    first = records.path(1, ".json").read_text()
    assert [trial.state for trial in records.read()] == ["finished", "interrupted"]
    if how == signal.SIGKILL:  # it had no time to end its trial
        os.kill(int(Path("runs/fake/4/process").read_text()), how)
    else:
        assert ended(4)  # its process too
        assert [row["state"] for row in results()] == ["finished", "interrupted"]
        assert Path("out.txt").read_text().endswith("to resume: cm-lightning sweep s.yaml --resume\n")
    Path("go_on").touch()
    sweep(["s.yaml", "--resume"])
    assert [row["state"] for row in results()] == ["finished", "finished"]
    assert records.path(1, ".json").read_text() == first


def test_a_trial_that_will_not_stop_is_made_to(monkeypatch):
    monkeypatch.setattr("cm_lightning.sweep.trials._GRACE_S", 0.5)
    trial, records = Trial(1, {"x": 9, "steps": 1000, "sleep": 0.1}), Records(Path("records"))
    path = grid(9)
    run_trial(read_sweep(path), trial, records, lambda running: bool(running.history("val/loss")), poll_s=0.1)
    assert trial.state == "stopped"
    assert ended(9)


def test_a_grid_continues_by_value_when_its_file_has_changed():
    sweep([grid(3)])
    sweep([grid(2, 3, 4), "--resume"])
    assert sorted(row["x"] for row in results()) == ["2", "3", "4"]


def test_a_grid_is_in_the_order_of_its_file_and_continues_when_that_has_changed():
    parameters = {"b": {"values": [1, 2]}, "a": {"values": [4, 3]}}
    files = [parameters, dict(reversed(parameters.items()))]
    orders = [Grid(read_sweep(write(parameters=file))) for file in files]
    found = [[(values["b"], values["a"]) for values in order.combinations] for order in orders]
    assert found == [[(1, 4), (1, 3), (2, 4), (2, 3)], [(1, 4), (2, 4), (1, 3), (2, 3)]]
    tried = [Trial(1, orders[0].combinations[1])]
    assert [orders[1].left(tried), orders[1].propose(tried)] == [3, {"a": 4, "b": 1}]


def test_students_on_points_learn_from_the_teacher_of_their_own_shape():
    """The runs of all shapes have the same names, and the last one counts."""
    trials = Grid(read_sweep(ROOT / "sweeps/plane.yaml")).combinations
    shapes = [shape for shape, _ in groupby(trials, lambda values: values["data.shape"])]
    assert shapes == ["checkerboard", "gaussians", "moons"]
    methods = [Path(name).stem for name, _ in groupby(trials, lambda values: values["config"])]
    assert methods[0] == "teacher"
    assert methods.index("ect") < methods.index("tcm")


def test_random_trials_are_within_bounds_and_the_same_each_time():
    parameters = {
        "a": {"min": 1, "max": 3},
        "b": {"min": 0.5, "max": 1.5},
        "c": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "d": {"values": ["p", "q"], "probabilities": [0.0, 1.0]},
        "e": {"distribution": "q_uniform", "min": 0, "max": 10, "q": 5},
        "f": {"distribution": "normal", "mu": 100.0, "sigma": 1.0},
        "g": {"value": "constant"},
    }
    search = make_search(read_sweep(write(method="random", parameters=parameters)))
    drawn = [search.propose([Trial(0, {})] * n) for n in range(200)]
    assert {values["a"] for values in drawn} == {1, 2, 3}
    assert all(0.5 <= values["b"] <= 1.5 and 1e-5 <= values["c"] <= 1e-2 for values in drawn)
    assert sum(values["c"] < 10**-3.5 for values in drawn) == pytest.approx(100, abs=25)
    assert {values["d"] for values in drawn} == {"q"}
    assert {values["e"] for values in drawn} == {0, 5, 10}
    assert all(90 < values["f"] < 110 and values["g"] == "constant" for values in drawn)
    assert drawn[:5] == [search.propose([Trial(0, {})] * n) for n in range(5)]


def test_errors_name_the_file_or_the_parameter():
    with pytest.raises(ConfigError, match=r"no sweep file at nowhere.yaml"):
        sweep(["nowhere.yaml"])
    Path("bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad.yaml is not YAML: line 1, column 5: "):
        sweep(["bad.yaml"])
    Path("bad.yaml").write_text("method: grid")
    with pytest.raises(ConfigError, match=r"bad.yaml: this is not a sweep: it needs method and parameters"):
        sweep(["bad.yaml"])
    with pytest.raises(ConfigError, match="choose grid, random or bayes"):
        sweep([write(method="guess", parameters={})])
    with pytest.raises(ConfigError, match="parameter x of a grid needs value or values"):
        sweep([write(parameters={"x": {"min": 0, "max": 1}})])
    with pytest.raises(ConfigError, match="a random search does not end by itself: give --count"):
        sweep([write(method="random", parameters={"x": {"min": 0, "max": 1}})])
    with pytest.raises(ConfigError, match=r"parameter x: distribution beta cannot be drawn without a and b"):
        sweep([write(method="random", parameters={"x": {"distribution": "beta"}})])
    with pytest.raises(ConfigError, match="write nested parameters with dots"):
        sweep([write(parameters={"x": {"parameters": {"y": {"value": 1}}}})])


def test_a_missing_engine_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sweeps", None)
    with pytest.raises(ConfigError, match=r"pip install 'cm-lightning\[sweeps\]'"):
        sweep([write(method="bayes", parameters={"x": {"min": 0.0, "max": 1.0}}), "--count=2"])


def test_bayes_and_hyperband_by_w_and_b_s_engine():
    pytest.importorskip("sweeps.bayes_search", reason="the engine holds numpy below 2")
    x = {"x": {"min": 0.0, "max": 6.0, "distribution": "uniform"}}
    sweep([write(name="bayes", method="bayes", parameters=x), "--count=6"])
    assert len(results("bayes")) == 6
    assert all(0 <= float(row["x"]) <= 6 and row["state"] == "finished" for row in results("bayes"))
    early = {"type": "hyperband", "min_iter": 2, "eta": 2, "s": 2, "strict": True}
    constants = {"steps": {"value": 12}, "sleep": {"value": 0.5}}
    write(name="early", early_terminate=early, parameters={"x": {"values": [2, 3, 5, 6]}, **constants})
    sweep(["s.yaml"])
    states = {row["x"]: row["state"] for row in results("early")}
    assert states["2"] == "finished"
    assert "stopped" in states.values()


def test_a_real_trial(monkeypatch):
    fork_trials(monkeypatch)
    parameters = {"config": {"value": f"{CONF}/toy.yaml"}, "seed_everything": {"values": [1]}}
    command = ["${env}", "${interpreter}", "-m", "cm_lightning", "fit", "--wandb=online", "${args}"]
    sweep([write(command=command, parameters=parameters)])
    (row,) = results()
    assert row["state"] == "finished"
    assert float(row["val/loss"]) > 0
    assert row["directory"] == "runs/toy/version_0"
    assert list(Path("runs/toy/wandb").glob("offline-run-*"))  # no account was needed


def test_a_dry_run_prints_commands_and_leaves_nothing(capsys):
    sweep([grid(3, 4), "--dry-run"])
    assert capsys.readouterr().out.splitlines() == [f"python {FAKE} --x=3", f"python {FAKE} --x=4"]
    assert not Path("runs").exists()
