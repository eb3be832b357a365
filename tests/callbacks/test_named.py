"""Callbacks by name: merged from file to file, left out, set on the command line, and found by all that read a run."""

import shlex
import sys
from pathlib import Path

import pytest
import yaml

from cm_lightning import cli
from cm_lightning.cli import main
from cm_lightning.named_callbacks import NAMES, by_name
from cm_lightning.report.configs import differences, read_config
from cm_lightning.sweep.definition import read_sweep
from cm_lightning.sweep.search import make_search

CONF = Path(__file__).parents[1] / "conf"
TOY = f"--config={CONF}/toy.yaml"
OWN = "tests.helpers.InterruptAt"


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


@pytest.fixture
def built(monkeypatch):
    """Build all that a command line specifies, up to the Trainer, and return its callbacks by class."""

    def build(*arguments):
        found = {}

        def stop(self):
            found.update({type(callback).__name__: callback for callback in self.trainer.callbacks})
            raise SystemExit(0)

        monkeypatch.setattr(cli._CLI, "after_instantiate_classes", stop)
        with pytest.raises(SystemExit) as end:
            main(["fit", *arguments])
        assert end.value.code == 0
        return found

    return build


def ours(found):
    """The names of the classes in order, except SaveLast, which Lightning puts last with other checkpoint callbacks."""
    known = [*NAMES.values(), "InterruptAt", "LearningRateMonitor"]
    return [name for name in found if name in known and name != "SaveLast"]


def write(name, content):
    Path(name).write_text(yaml.safe_dump(content))
    return f"--config={name}"


def saved(version=0):
    return yaml.safe_load(Path(f"runs/toy/version_{version}/config.yaml").read_text())


def test_a_file_changes_an_entry_of_its_base_and_keeps_the_others(built):
    write("base.yaml", {"base": f"{CONF}/image.yaml", "callbacks": {"ema": {"decay": 0.5, "ramp": False}}})
    top = write("top.yaml", {"base": "base.yaml", "callbacks": {"ema": {"decay": 0.6}, "quality": {"nfe": [3]}}})
    found = built(top, "--callbacks.quality.batch_size=7")
    assert ours(found) == ["EMA", "SampleGrid", "Quality"]
    assert (found["EMA"].decay, found["EMA"].ramp) == (0.6, False)
    assert (found["Quality"].nfe, found["Quality"].num_samples, found["Quality"].batch_size) == ([3], 100, 7)


def test_whoever_is_asked_for_alone_is_there(built):
    assert ours(built(TOY)) == ["EMA", "Throughput"]
    plain = {key: value for key, value in yaml.safe_load((CONF / "toy.yaml").read_text()).items() if key != "callbacks"}
    assert ours(built(write("plain.yaml", plain))) == []
    assert ours(built("--config=plain.yaml", "--callbacks.ema={}")) == ["EMA"]


@pytest.mark.parametrize("null", ["--callbacks.throughput=null", "--callbacks.throughput=None",
                                  "--callbacks={throughput: null}", "--config=without.yaml"])  # fmt: skip
def test_null_leaves_one_out(built, null):
    write("without.yaml", {"callbacks": {"throughput": None}})
    assert ours(built(TOY, null)) == ["EMA"]
    assert ours(built(TOY, null, "--callbacks.throughput={}")) == ["EMA", "Throughput"]


@pytest.mark.parametrize("null", ["--callbacks=null", "--callbacks=None", "--config=without.yaml"])
def test_null_leaves_all_out(built, null):
    write("without.yaml", {"callbacks": None})
    own = write("own.yaml", {"callbacks": {"mine": {"class_path": OWN, "init_args": {"step": 3}}}})
    assert ours(built(TOY, own, null)) == []
    found = built(TOY, own, null, "--callbacks.ema.ramp=false")
    assert ours(found) == ["EMA"]
    assert found["EMA"].decay == 0.9999  # nothing is left of the file's


def test_the_order_is_the_suites_and_then_the_users(built):
    names = {"mine": {"class_path": OWN, "init_args": {"step": 3}}, "progress": {}, "bad_steps": {}, "export": {},
             "save_last": {}, "quality": {}, "prompts": {}, "samples": {}, "throughput": {}, "ema": {},
             "compile": {}}  # fmt: skip
    Path("all.yaml").write_text(yaml.safe_dump({"callbacks": names}, sort_keys=False))
    arguments = [f"--config={CONF}/image.yaml", "--config=all.yaml", "--trainer.enable_progress_bar=true"]
    found = built(*arguments, "--trainer.callbacks+=LearningRateMonitor")
    suites = [name for name in NAMES.values() if name != "SaveLast"]
    assert ours(found) == [*suites, "InterruptAt", "LearningRateMonitor"]
    assert "RunProgress" not in built(*arguments, "--trainer.enable_progress_bar=false")


@pytest.mark.parametrize(
    "options",
    [
        ["--callbacks.mine.class_path=" + OWN, "--callbacks.mine.init_args.step=3"],
        ["--callbacks.mine", OWN, "--callbacks.mine.step", "3"],
        [f"--callbacks={{mine: {{class_path: {OWN}, init_args: {{step: 3}}}}}}"],
        ["--config=own.yaml", "--callbacks.mine.step=3"],
        ["--config=above.yaml"],
    ],
)
def test_a_users_own_has_a_name_and_a_class(built, options):
    write("own.yaml", {"callbacks": {"mine": {"class_path": OWN, "init_args": {"step": 1}}}})
    write("above.yaml", {"base": "own.yaml", "callbacks": {"mine": {"init_args": {"step": 3}}}})
    found = built(TOY, *options)
    assert ours(found) == ["EMA", "Throughput", "InterruptAt"]
    assert found["InterruptAt"].step == 3


def test_the_saved_configuration_is_read_again_and_can_be_changed(built):
    main(["fit", TOY, f"--callbacks.mine={OWN}", "--callbacks.mine.step=6", "--callbacks.throughput=null"])
    callbacks = saved()["callbacks"]
    assert list(callbacks) == ["ema", "save_last", "mine"]
    assert callbacks["ema"]["init_args"]["decay"] == 0.9
    again = "--config=runs/toy/version_0/config.yaml"
    found = built(again)
    assert ours(found) == ["EMA", "InterruptAt"]
    assert found["SaveLast"]._every_n_train_steps == 3
    found = built(again, "--callbacks.ema.decay=0.8", "--callbacks.mine=null", "--callbacks.throughput={}")
    assert ours(found) == ["EMA", "Throughput"]
    assert found["EMA"].decay == 0.8


@pytest.mark.parametrize(
    ("left_out", "names"),
    [
        ({"ema": None}, ["Throughput", "InterruptAt"]),
        ({"mine": None}, ["EMA", "Throughput"]),
        ({"mine": None, "ema": None, "throughput": None}, []),
    ],
)
def test_a_printed_configuration_is_read_again_and_means_the_same(built, capsys, left_out, names):
    own = {"class_path": OWN, "init_args": {"step": 3}}
    write("base.yaml", {"base": f"{CONF}/toy.yaml", "callbacks": {"mine": own}})
    top = write("top.yaml", {"base": "base.yaml", "callbacks": left_out})
    assert ours(built(top)) == names
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", top, "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert ours(built("--config=printed.yaml")) == names
    with pytest.raises(SystemExit):
        main(["fit", "--config=printed.yaml", "--print_config"])
    assert capsys.readouterr().out == Path("printed.yaml").read_text()


def test_a_name_that_is_left_out_is_not_saved_and_none_need_be():
    main(["fit", TOY, f"--callbacks.mine={OWN}", "--callbacks.mine.step=6", "--callbacks.mine=null"])
    assert list(saved()["callbacks"]) == ["ema", "throughput", "save_last"]
    main(["fit", TOY, "--callbacks=null"])
    assert not saved(1)["callbacks"]
    main(["fit", "--config=runs/toy/version_1/config.yaml"])
    assert not saved(2)["callbacks"]


@pytest.fixture
def old_run():
    """A run with a list of callbacks in its configuration, without names."""
    main(["fit", TOY, "--trainer.max_steps=6"])
    config = saved()
    config["trainer"]["callbacks"] = list(config.pop("callbacks").values())
    return write("runs/toy/version_0/config.yaml", config)


def test_an_old_configuration_runs_and_is_compared_by_name(built, old_run, log):
    assert ours(built(old_run)) == ["EMA", "Throughput"]
    old, new = read_config(Path("runs/toy/version_0/config.yaml")), by_name(saved())
    assert differences([old, {**new, "callbacks": {**new["callbacks"], "prompts": None}}]) == []
    new["callbacks"]["ema"]["init_args"]["decay"] = 0.5
    assert differences([old, new]) == [["callbacks.ema.decay", "0.9", "0.5"]]


def test_an_old_run_is_resumed_by_name(old_run, log):
    main(["fit", TOY, "--ckpt_path=last", "--callbacks.ema.decay=0.95"])
    (line,) = [line for line in log if line.startswith("resumed at")]
    assert line == "resumed at step 6; changed: trainer.max_steps 6 -> 12, callbacks.ema.decay 0.9 -> 0.95"


def test_a_sweep_sets_and_leaves_out(built):
    parameters = {
        "config": {"value": f"{CONF}/toy.yaml"},
        "callbacks.ema.decay": {"values": [0.5, 0.7]},
        "callbacks.throughput": {"value": None},
        "callbacks.mine": {"value": {"class_path": OWN, "init_args": {"step": 3}}},
    }
    command = ["${env}", "${interpreter}", "-m", "cm_lightning", "fit", "${args}"]
    Path("sweep.yaml").write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters}))
    sweep = read_sweep("sweep.yaml")
    search = make_search(sweep)
    for decay in (0.5, 0.7):
        line = sweep.command_line({**search.propose([]), "callbacks.ema.decay": decay})
        found = built(*shlex.split(shlex.join(line[5:])))
        assert ours(found) == ["EMA", "InterruptAt"]
        assert (found["EMA"].decay, found["InterruptAt"].step) == (decay, 3)


def test_a_dry_run_counts_the_averages(capsys):
    for options, expected in ([], "1 x averages"), (["--callbacks.ema=null"], ""):
        with pytest.raises(SystemExit) as stop:
            main(["fit", f"--config={CONF}/image.yaml", "--dry_run", *options])
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert expected in out
        assert ("averages" in out) == bool(expected)
