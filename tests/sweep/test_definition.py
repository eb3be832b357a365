"""Sweep files with faults: one line that names the file, the key and the remedy, before anything is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cm_lightning.commands.sweep import main as sweep
from cm_lightning.errors import ConfigError
from cm_lightning.sweep.definition import read_sweep
from cm_lightning.sweep.search import Grid

WHOLE = {
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "command": ["${interpreter}", "run.py", "${args}"],
    "parameters": {"x": {"values": [1, 2]}},
}
HYPERBAND = {"type": "hyperband", "min_iter": 3}


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(content: str | bytes) -> str:
    """The command's error for a file with this content, after a check that it leaves nothing behind."""
    Path("s.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as refused:
        sweep(["s.yaml"])
    assert [str(path) for path in Path().iterdir()] == ["s.yaml"]
    line = str(refused.value)
    assert "\n" not in line
    assert "s.yaml" in line
    return line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"metric": {"name": "l", "goal": "minimise"}}, "metric.goal 'minimise' is unknown; perhaps minimize is meant"),
        ({"metric": {"name": "l", "goal": "maximise"}}, "perhaps maximize is meant; choose minimize or maximize"),
        ({"metric": {"name": "l", "goal": "max"}}, "metric.goal 'max' is unknown; perhaps maximize is meant"),
        ({"metric": {"name": "l", "goal": "min"}}, "perhaps minimize is meant"),
        ({"metric": {"name": "l", "goal": "Minimize"}}, "perhaps minimize is meant"),
        ({"metric": {"name": "l", "goal": "MAXIMIZE"}}, "perhaps maximize is meant"),
        ({"metric": {"name": "l", "goal": "lower"}}, "metric.goal 'lower' is unknown; choose minimize or maximize"),
        ({"metric": {"name": "l", "goal": None}}, "metric.goal None is unknown"),
        ({"metric": {"name": "l", "goal": True}}, "metric.goal True is unknown"),
        ({"metric": {"name": "l", "gaol": "minimize"}}, "no key metric.gaol; perhaps goal is meant"),
        ({"metric": {"name": "l", "target": "low"}}, "metric.target must be a finite number, got 'low'"),
        ({"metric": "val/loss"}, "got 'val/loss': write metric: {name: val/loss, goal: minimize}"),
        ({"metric": ["val/loss"]}, "metric must have a name, got ['val/loss']: write metric: {name"),
        ({"metric": 3}, "metric must have a name, got 3"),
        ({"metric": {"goal": "minimize"}}, "metric lacks a name: write metric: {name"),
        ({"metric": {"name": 3}}, "name must be non-empty text, got 3: put it in quotes"),
        ({"run_cap": "1"}, "run_cap must be a whole number of at least 1, got '1'"),
        ({"run_cap": 0}, "run_cap must be a whole number of at least 1, got 0"),
        ({"run_cap": -1}, "run_cap must be a whole number of at least 1, got -1"),
        ({"run_cap": 1.5}, "run_cap must be a whole number of at least 1, got 1.5"),
        ({"run_cap": True}, "run_cap must be a whole number of at least 1, got True"),
        ({"run_cap": [3]}, "run_cap must be a whole number of at least 1, got [3]"),
        ({"command": "python train.py ${args}"}, "command must be a list, got 'python train.py ${args}': write a list"),
        ({"command": {"a": 1}}, "command must be a list, got {'a': 1}"),
        ({"command": ["${env}", {"args": None}]}, "command has {'args': None}, which is not text: put it in quotes"),
        ({"command": ["python", None, "${args}"]}, "command has None, which is not text"),
        ({"command": ["python", True, "${args}"]}, "command has True, which is not text"),
        ({"command": ["python", ["${args}"]]}, "command has ['${args}'], which is not text"),
        ({"command": ["python", "train.py"]}, "command has no ${args}, so the parameters would not reach the program"),
        ({"command": ["${enviroment}", "${args}"]}, "command has ${enviroment}: choose one of env, interpreter, args"),
        ({"command": ["python", "${program}", "${args}"]}, "command has ${program}: give program: FILE, or a command"),
        ({"command": ...}, "command has ${program}: give program: FILE"),
        ({"program": ["a.py"]}, "program must be non-empty text, got ['a.py']"),
        ({"parameters": {}}, "parameters must have names, got {}: write parameters: {seed"),
        ({"parameters": None}, "parameters must have names, got None"),
        ({"parameters": [{"x": {"value": 1}}]}, "parameters must have names, got [{"),
        ({"parameters": "x"}, "parameters must have names, got 'x'"),
        ({"parameters": {1: {"value": 1}}}, "YAML reads the name 1 as int: put it in quotes"),
        ({"parameters": {True: {"value": 1}, "x": {"value": 1}}}, "YAML reads the name True as bool"),
        ({"parameters": {"--x": {"value": 1}}}, "parameters: '--x' is not an option's name: leave out dashes"),
        ({"parameters": {"a b": {"value": 1}}}, "parameters: 'a b' is not an option's name"),
        ({"parameters": {"x=": {"value": 1}}}, "parameters: 'x=' is not an option's name"),
        ({"parameters": {"x": {"min": 0, "max": 1}}}, "parameter x of a grid needs value or values"),
        ({"method": "gird"}, "method 'gird' is unknown; perhaps grid is meant; choose grid, random or bayes"),
        ({"method": "Random"}, "method 'Random' is unknown; perhaps random is meant"),
        ({"method": "bayesian"}, "method 'bayesian' is unknown; perhaps bayes is meant"),
        ({"method": ["grid"]}, "method ['grid'] is unknown"),
        ({"method": None}, "method None is unknown; choose grid, random or bayes"),
        ({"method": 3}, "method 3 is unknown; choose"),
        ({"method": ...}, "this is not a sweep: it needs method and parameters, but lacks method"),
        ({"parameters": ...}, "it needs method and parameters, but lacks parameters"),
        ({"parameters": ..., "paramters": {}}, "no key paramters; perhaps parameters is meant"),
        ({"metrics": {"name": "l"}}, "no key metrics; perhaps metric is meant"),
        ({"runcap": 3}, "no key runcap; perhaps run_cap is meant"),
        ({"early_stopping": HYPERBAND}, "no key early_stopping"),
        ({7: 1}, "no key 7; choose from name, method"),
        ({"name": 7}, "name must be non-empty text, got 7: put it in quotes"),
        ({"name": ["a"]}, "name must be non-empty text, got ['a']"),
        ({"name": " "}, "name must be non-empty text, got ' '"),
        ({"name": "/etc/sweep"}, "name '/etc/sweep' cannot be the name of a folder under runs/sweeps: choose another"),
        ({"name": "../../up"}, "name '../../up' cannot be the name of a folder"),
        ({"name": "a\nb"}, r"name 'a\nb' cannot be the name of a folder"),
        ({"early_terminate": "hyperband"}, "write early_terminate: {type: hyperband, min_iter: 3}"),
        ({"early_terminate": []}, "early_terminate is []: write early_terminate"),
        ({"early_terminate": {}}, "early_terminate is {}: write early_terminate"),
        ({"early_terminate": {"min_iter": 3}}, "early_terminate.type None is unknown; choose hyperband"),
        ({"early_terminate": {"type": "hyperbnd", "min_iter": 3}}, "perhaps hyperband is meant"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "early_terminate needs min_iter, or max_iter"),
        ({"early_terminate": {**HYPERBAND, "min_iter": 0}}, "early_terminate.min_iter must be a whole number of at le"),
        ({"early_terminate": {**HYPERBAND, "min_iter": "3"}}, "early_terminate.min_iter must be a whole number"),
        ({"early_terminate": {**HYPERBAND, "eta": 1}}, "early_terminate.eta must be a finite number above 1, got 1"),
        ({"early_terminate": {**HYPERBAND, "strict": "yes"}}, "early_terminate.strict must be true or false"),
        ({"early_terminate": {**HYPERBAND, "min_iters": 2}}, "no key early_terminate.min_iters; perhaps min_iter is"),
        ({"metric": ..., "early_terminate": HYPERBAND}, "bayes and early_terminate need a metric: write metric: {name"),
        ({"metric": ..., "method": "bayes"}, "bayes and early_terminate need a metric"),
    ],
)
def test_a_key_with_a_fault_is_named_with_its_remedy(content, expected):
    whole = {key: value for key, value in {**WHOLE, **content}.items() if value is not ...}
    line = refusal(yaml.safe_dump(whole, sort_keys=False))
    assert line.startswith("s.yaml: ")
    assert expected in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "s.yaml is not a sweep: it is empty: it needs method and parameters"),
        ("# nothing but a comment\n", "s.yaml is not a sweep: it is empty"),
        ("- method: grid\n", "s.yaml is not a sweep: it holds a list"),
        ("method", "s.yaml is not a sweep: it holds a single value"),
        ("3", "s.yaml is not a sweep: it holds a single value"),
        ("method: grid\n\tparameters: 1\n", "s.yaml is not YAML: line 2, column 1: "),
        ("method: grid\nparameters:\n\tx: {value: 1}\n", "indent with spaces, not tabs"),
        ("command: [${env}, python]\n", 'within brackets write "${args}" in quotes'),
        ("method: grid\nmethod: random\n", "s.yaml is not YAML: line 2, column 1: method occurs twice: leave one out"),
        ("parameters:\n  x: {value: 1}\n  x: {value: 2}\n", "line 3, column 3: x occurs twice"),
        ("a: {b: [1}", "s.yaml is not YAML: line 1"),
        ("method: grid\n---\nmethod: grid\n", "s.yaml is not YAML: "),
        ("method: !grid 1", "s.yaml is not YAML: line 1, column 9: could not determine a constructor"),
        ("when: 2024-13-01", "s.yaml is not YAML: month must be in 1..12"),
        ("{[1]: 2}", "s.yaml is not YAML: "),
        ("name: \x00", "s.yaml is not YAML: "),
        ("name: Düne".encode("latin-1"), "s.yaml is not text in UTF-8 (byte 7): save it as UTF-8"),
        ("method: grid".encode("utf-16"), "s.yaml is not text in UTF-8 (byte 0): save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "s.yaml is not text in UTF-8"),
        ("a: " + "[" * 1000, "s.yaml is not YAML that can be read: it is nested too deeply"),
    ],
    ids=range(20),
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(content, expected):
    assert expected in refusal(content)


def test_a_folder_is_not_a_sweep_file():
    Path("folder").mkdir()
    with pytest.raises(ConfigError, match=r"^folder is not a sweep file: is a directory$"):
        read_sweep("folder")


def test_what_was_good_is_read_as_it_was():
    Path("good.yaml").write_bytes(
        "\ufeffmethod: grid\ndescription: Düne\nproject: p\nentity: e\nprogram: t.py\n"
        "parameters: {a.b: {value: null}, c: {values: [1, 1.0, true, .nan, 1]}}\n".encode()
    )
    read = read_sweep("good.yaml")
    assert (read.name, read.method, read.metric, read.minimize, read.run_cap) == ("good", "grid", None, True, None)
    assert read.command == ["${env}", "${interpreter}", "${program}", "${args}"]
    assert read.command_line({"a.b": None}) == ["/usr/bin/env", "python", "t.py", "--a.b=None"]
    values = [combination["c"] for combination in Grid(read).combinations]
    assert repr(values) == "[1, 1.0, True, nan]"  # 1 twice is one trial; 1.0 and true are others


@pytest.mark.parametrize(("goal", "minimize"), [("minimize", True), ("maximize", False)])
def test_a_goal_is_kept(goal, minimize):
    Path("s.yaml").write_text(yaml.safe_dump({**WHOLE, "metric": {"name": "l", "goal": goal, "target": 0.1}}))
    assert read_sweep("s.yaml").minimize is minimize


def test_an_anchor_that_is_merged_may_be_overridden():
    text = "method: random\nprogram: t.py\nparameters:\n  x: &x {min: 1, max: 2}\n  y: {<<: *x, max: 3}\n"
    Path("s.yaml").write_text(text)
    assert read_sweep("s.yaml").parameters["y"] == {"min": 1, "max": 3}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--count=0"], "--count: must be a whole number of at least 1, got 0"),
        (["--count=-2"], "--count: must be a whole number of at least 1, got -2"),
        (["--count", "1.5"], "--count: must be a whole number of at least 1, got '1.5'"),
        (["--count=all"], "--count: must be a whole number of at least 1, got 'all'"),
        (["--retry-fail"], "no option --retry-fail; perhaps --retry_failed is meant"),
        (["--cuont=3"], "no option --cuont; perhaps --count is meant"),
    ],
)
def test_an_option_with_a_fault_is_named(arguments, expected, capsys):
    Path("s.yaml").write_text(yaml.safe_dump(WHOLE))
    with pytest.raises(SystemExit) as stop:
        sweep(["s.yaml", *arguments])
    assert stop.value.code == 2
    assert re.fullmatch(f"error: {re.escape(expected)}.*\n", capsys.readouterr().err)
    assert not Path("runs").exists()
