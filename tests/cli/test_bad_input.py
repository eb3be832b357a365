"""Bad input to the Trainer's commands: one line that names the option or the file and the remedy, and exit status 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cm_lightning import __main__ as entry
from cm_lightning import failures
from cm_lightning.cli import main
from cm_lightning.complaints import short_lists
from cm_lightning.errors import ConfigError, DataError
from tests.processes import fork

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    monkeypatch.delenv(failures.DEBUG, raising=False)


def line(capsys, *arguments):
    """The one line of an error."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments])
    assert stop.value.code == 2
    (found,) = [text for text in capsys.readouterr().err.splitlines() if "error: " in text]
    assert not list(Path().rglob("*.ckpt"))
    return found


def toy(*options):
    return [f"--config={CONF}/toy.yaml", *options]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--trainer.max_steps=-5", "trainer.max_steps must be -1 (no limit) or a whole number of at least 1, got -5"),
        ("--trainer.max_steps=0", "trainer.max_steps must be -1"),
        ("--trainer.max_epochs=0", "trainer.max_epochs must be -1"),
        ("--trainer.min_steps=-1", "trainer.min_steps must be a whole number of at least 0"),
        ("--trainer.val_check_interval=0", "trainer.val_check_interval must be a whole number, or a part"),
        ("--trainer.val_check_interval=1.5", "trainer.val_check_interval must be"),
        ("--trainer.val_check_interval=-2", "trainer.val_check_interval must be"),
        ("--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch must be a whole number of at least 1"),
        ("--trainer.log_every_n_steps=-1", "trainer.log_every_n_steps must be"),
        ("--trainer.num_sanity_val_steps=-2", "trainer.num_sanity_val_steps must be"),
        ("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be"),
        ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must be a finite number of at least 0"),
        ("--trainer.gradient_clip_val=nan", "trainer.gradient_clip_val must be"),
        ("--trainer.limit_val_batches=2.5", "trainer.limit_val_batches must be a whole number, or a part in [0, 1]"),
        ("--trainer.limit_train_batches=-1", "trainer.limit_train_batches must be"),
        ("--trainer.overfit_batches=-3", "trainer.overfit_batches must be"),
        ("--trainer.num_nodes=0", "trainer.num_nodes must be"),
        ("--trainer.devices=0", "trainer.devices must be -1 (all) or a whole number of at least 1"),
        ("--trainer.devices=[a]", "--trainer.devices: `devices` selected with `CPUAccelerator` should be an int"),
        ("--trainer.accelerator=gpu", "--trainer.accelerator gpu: there is no GPU here: give cpu, or auto"),
        ("--trainer.accelerator=nonsense", "`accelerator='nonsense'`"),
        ("--trainer.strategy=nonsense", "`strategy='nonsense'`"),
        ("--trainer.max_time=later", "'later'"),
        ("--trainer.profiler=nonsense", "`profiler`"),
        ("--trainer.precision=nonsense", "--trainer.precision must be one of"),
        ("--trainer.detect_anomaly=maybe", "--trainer.detect_anomaly must be true or false, got maybe"),
        ("--trainer.max_steps=many", "--trainer.max_steps must be a whole number, got many"),
        ("--trainer.max_steps=1.5", "--trainer.max_steps must be a whole number, got 1.5"),
        ("--seed_everything=x", "--seed_everything must be true or false or a whole number, got x"),
        ("--wandb=maybe", "--wandb must be one of off, online, offline, required, got maybe"),
        ("--trainer.max_stepss=2", "no option --trainer.max_stepss; perhaps --trainer.max_steps is meant"),
        ("--max_steps=2", "no option --max_steps"),
        ("--lr=3", "no option --lr. See"),
        ("--model.label_dropout=2", "ConsistencyTraining: label_dropout must be a number in [0, 1], got 2.0"),
        ("--model.backbone.width=0", "ResidualMLP: width must be"),
        ("--model.parameterization={class_path: BoundaryShifted, init_args: {sigma_data: 0}}", "BoundaryShifted: "),
        ("--model.target_rate={class_path: ConstantRate, init_args: {mu: 1.5}}", "error: ConstantRate: mu must be"),
        ("--model.sampling_sigmas={'2': [80.0]}", "sampling_sigmas of 2 steps must be 2 noise levels, got [80.0]"),
        ("--trainer.callbacks={class_path: EMA, init_args: {decay: 1}}", "EMA: decay must be a number in [0, 1)"),
        ("--callbacks.ema.decay=1", "EMA: decay must be a number in [0, 1), got 1"),
        ("--callbacks.ema.decay=soon", "--callbacks.ema.decay must be a number, got soon"),
        ("--callbacks.save_last.every_n_train_steps=0", "SaveLast: every_n"),
        ("--callbacks.ema.decy=0.5", "no option --callbacks.ema.decy of EMA; perhaps decay is meant"),
        ("--callbacks.emma.decay=0.5", "no option --callbacks.emma; perhaps ema is meant; choose one of compile, ema"),
        ("--callbacks.throughputt=null", "no option --callbacks.throughputt; perhaps throughput is meant"),
        ("--callbacks={quallity: {nfe: [1]}}", "no option --callbacks.quallity; perhaps quality is meant"),
        ("--callbacks={quality: {nfee: [1]}}", "no option --callbacks.quality.nfee of Quality; perhaps nfe is meant"),
        ("--callbacks.ema=Throughput", "--callbacks.ema: no class 'Throughput'; give EMA"),
        ("--callbacks.ema=true", "--callbacks.ema must be its options, a class or null, got True"),
        ("--callbacks.ema=[1]", "--callbacks.ema must be its options, a class or null, got [1]"),
        ("--callbacks=[EMA]", "--callbacks must have names, such as {ema: {decay: 0.99}}, got ['EMA']: a list is"),
        ("--callbacks=EMA", "--callbacks must have names"),
        ("--callbacks.mine=Nonsense", "--callbacks.mine: no class 'Nonsense'"),
        ("--callbacks.mine=torch.nn.Linear", "--callbacks.mine: Import path does not correspond to a subclass of C"),
        ("--callbacks.a-b=EMA", "--callbacks.a-b: choose a name of letters, digits and underscores"),
        ("--callbacks.rates=LearningRateFinder", "callbacks.rates: LearningRateFinder needs a module with an attribut"),
        ("--data.batch_size=0", "Toy: batch_size must be a whole number of at least 1, got 0"),
        ("--modle.sigma_max=1", "no option --modle.sigma_max; perhaps --model is meant"),
        ("extra", "unexpected argument extra"),
        ("--model=ConsistencyTrainig", "--model: no class 'ConsistencyTrainig'; perhaps ConsistencyTraining is meant"),
        ("--model=5", "--model: no class '5'; choose one of "),
        ("--model=ConsistencyDistillation", "--model.teacher must be given"),
        ("--model.backbone=UNett", "--model.backbone: no class 'UNett'; perhaps UNet is meant; choose one of ADM, "),
        ("--model.backbone=torch.nn.Linea", "--model.backbone: module 'torch.nn' has no attribute 'Linea'"),
        ("--model.backbone.widht=4", "no option --model.backbone.widht of ResidualMLP; perhaps width is meant"),
        ("--model.backbone.init_args.width=a", "--model.backbone.width must be a whole number, got a"),
        ("--model.image_shape=[a]", "--model.image_shape must be a whole number or null, got a. See"),
        ("--model.sigma_mxa=1", "no option --model.sigma_mxa of ConsistencyTraining; perhaps sigma_max is meant"),
        ("--model.teacher=x", "no option --model.teacher of ConsistencyTraining"),
        ("--model.curriculum=DoublingLevels", "--model.curriculum: no class 'DoublingLevels'; choose one of Contin"),
        ("--model.curriculum.stages=2", "--model.curriculum: name its class first, one of ContinuousCurriculum, "),
        ("--model.optimizer=AdamZ", "--model.optimizer: no class 'AdamZ'; perhaps Adam is meant"),
        ("--model.optimizer.lr=fast", "--model.optimizer.lr must be a number or null, got fast"),
        ("--model.optimizer.init_args.lr=-0.1", "model.optimizer: Invalid learning rate: -0.1"),
        ("--model.optimizer.momentun=0.9", "no option --model.optimizer.momentun of RAdam"),
        ("--data=Nothing", "--data: no class 'Nothing'; choose one of CIFAR10"),
        ("--data.num_points=a", "--data.num_points must be a whole number, got a"),
        ("--data.batchsize=3", "no option --data.batchsize of Toy; perhaps batch_size is meant"),
        ("--trainer.callbacks+=EMMA", "--trainer.callbacks: no class 'EMMA'; perhaps EMA is meant"),
        ("--trainer.logger=CometLogger", "CometLogger needs a package: pip install comet-ml"),
        ("--trainer.logger=MLFlowLogger", "MLFlowLogger needs a package: pip install mlflow"),
        ("--trainer.callbacks+=LearningRateFinder", "LearningRateFinder needs a module with an attribute lr"),
    ],
)  # fmt: skip
def test_an_option_is_refused_in_a_line(option, expected, capsys):
    assert expected in line(capsys, *toy(option))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--trainer.callbacks+=EMA", "--trainer.callbacks.decy=3"], "callbacks.decy of EMA; perhaps decay is meant"),
        (["--trainer.callbacks+=EMA", "--trainer.callbacks.decay=3"], "decay"),
        (["--model.curriculum=ContinuousCurriculum", "--model.curriculum.density=LogNormall"], "no class 'LogNormall'"),
        (["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=x"], "pip install tensorboard"),
        (["--trainer.max_stpes", "3"], "no option --trainer.max_stpes; perhaps --trainer.max_steps is meant"),
        (["--config"], "-c/--config: expected one argument"),
        (["--callbacks=null", "--callbacks.stop=EarlyStopping", "--callbacks.stop.monitor=val/nothing"],
         "`val/nothing` which is"),
        (["--callbacks=null", "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=val/none"],
         "monitor='val/none'"),
    ],
)  # fmt: skip
def test_options_are_refused_in_a_line(options, expected, capsys):
    assert expected in line(capsys, *toy(*options))


BASE = f"base: {CONF}/toy.yaml\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer:\n  max_steps: 3\n model:\n", "bad.yaml is not YAML: line 3, column 2: "),
        ("trainer:\n\tmax_steps: 3\n", "bad.yaml is not YAML: line 2, column 1: "),
        ("- 1\n- 2\n", "bad.yaml is not a configuration: expected trainer, model and data"),
        ("", "bad.yaml is not a configuration"),
        ("text\n", "bad.yaml is not a configuration"),
        ("\x00\x01", "bad.yaml is not YAML"),
        (BASE + "trainer:\n  max_stepss: 3\n", "--trainer.max_stepss in bad.yaml; perhaps --trainer.max_steps"),
        (BASE + "modell: 3\n", "no option --modell"),
        (BASE + "model:\n  init_args:\n    backbone:\n      init_args:\n        widht: 3\n",
         "--model.backbone.widht in bad.yaml"),
        (BASE + "model:\n  init_args:\n    backbone:\n      init_args:\n        width: wide\n",
         "--model.backbone.width in bad.yaml must be a whole number, got wide"),
        (BASE + "model:\n  class_path: Nonsense\n", "--model in bad.yaml: no class 'Nonsense'"),
        (BASE + "trainer:\n  max_steps: soon\n", "--trainer.max_steps in bad.yaml must be a whole number, got soon"),
        (BASE + "callbacks:\n  emma: {decay: 0.9}\n", "no option --callbacks.emma in bad.yaml; perhaps ema is meant"),
        (BASE + "callbacks:\n  ema: {decy: 0.9}\n", "no option --callbacks.ema.decy in bad.yaml of EMA; perhaps decay"),
        (BASE + "callbacks:\n  ema: {decay: soon}\n", "--callbacks.ema.decay in bad.yaml must be a number, got soon"),
        (BASE + "callbacks:\n  - class_path: EMA\n", "--callbacks in bad.yaml must have names"),
        (BASE + "callbacks: 3\n", "--callbacks in bad.yaml must have names, such as {ema: {decay: 0.99}}, got 3: a"),
        (BASE + "callbacks:\n  ema: 3\n", "--callbacks.ema in bad.yaml must be its options, a class or null, got 3"),
        ("base: nowhere.yaml\n", "nowhere.yaml"),
        ("base: bad.yaml\n", "bad.yaml builds on itself"),
    ],
)  # fmt: skip
def test_a_file_is_refused_in_a_line_that_names_it(text, expected, capsys):
    Path("bad.yaml").write_text(text)
    assert expected in line(capsys, "--config=bad.yaml")


def test_files_that_are_none(capsys):
    assert "file not found:" in line(capsys, "--config=nowhere.yaml")
    assert "file not found:" in line(capsys, "--config=.")
    Path("picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    assert "picture.yaml is not YAML: it is not text" in line(capsys, "--config=picture.yaml")
    assert "--data and --model must be given, for example by --config" in line(capsys)


def test_null_may_be_spelt_as_wandb_spells_it():
    main(["fit", *toy("--model.target_rate=None", "--model.lr_scheduler=None", "--trainer.max_steps=6")])
    assert "target_rate: null" in Path("runs/toy/version_0/config.yaml").read_text()


def test_a_run_without_a_progress_bar_may_keep_the_callback_of_one():
    main(["fit", *toy("--trainer.callbacks=RunProgress", "--trainer.max_steps=6")])  # the file turns the bar off
    assert Path("runs/toy/version_0/metrics.csv").exists()


def test_the_help_of_a_class_names_the_networks_of_the_suite(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model.help", "ConsistencyTraining"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: cm-lightning fit ")
    assert "known subclasses: ADM, DDPMpp, DiT, DiffusersUNet, EDM2, NCSNpp, ResidualMLP, UNet, and " in text
    assert "torch.nn" not in text


def test_short_lists_stay_whole():
    assert short_lists("(type: X, known subclasses:\n a.B, c.D)") == "(type: X, known subclasses:\n a.B, c.D)"


def raised(make):
    try:
        make()
    except BaseException as error:
        return error
    raise AssertionError("it should have raised")


def wrapped():
    try:
        raise DataError("no folder images: set --data.root")
    except DataError as error:
        raise ValueError("Does not validate") from error


def from_worker():
    raise ConfigError(
        "Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1\ncm_lightning.errors.ConfigError: a.png cannot be read'
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (wrapped, "no folder images: set --data.root"),
        (from_worker, "a.png cannot be read"),
        (lambda: Path("nowhere/x.txt").read_text(), "nowhere/x.txt: no such file or directory"),
        (lambda: Path().read_text(), ".: is a directory"),
        (lambda: torch.empty(2**60), "out of memory: lower --data.batch_size"),
        (lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried")), "out of memory: lower"),
        (lambda: __import__("diffusers.nothing"), "this needs diffusers: pip install"),
        (lambda: (_ for _ in ()).throw(RuntimeError("[gloo] Connection closed by peer [::1]")), "another rank failed"),
        (lambda: {}["momentum"], "KeyError: 'momentum'"),
        (lambda: int("x"), "ValueError: invalid literal"),
    ],
)
def test_each_kind_of_failure_has_its_line(make, expected):
    found = failures.describe(raised(make))
    assert expected in found
    assert "\n" not in found


def test_an_unexpected_failure_keeps_its_traceback_in_a_file_that_the_line_names(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop, failures.reported():
        {}["momentum"]
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    kept = Path(error.partition("(traceback: ")[2].strip().removesuffix(")"))
    assert "KeyError: 'momentum'" in kept.read_text()
    kept.unlink()
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(SystemExit), failures.reported():
        raise ConfigError("sigma_max must be ...")
    assert capsys.readouterr().err == "rank 3: error: sigma_max must be ...\n"


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv(failures.DEBUG, "")
    monkeypatch.setattr(sys, "argv", ["cm-lightning", "sample", "--debug", "--ckpt_path=nowhere.ckpt"])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: ")
    assert "nowhere.ckpt" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fitt"], "no command 'fitt'; perhaps fit is meant; choose one of fit, validate"),
        (["sweeep", "x.yaml"], "perhaps sweep is meant"),
        (["sample", "--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
        (["export", "--ckpt_path=nowhere.ckpt", "--format=onnx", "--output=x"], "nowhere.ckpt"),
        (["compare", "nowhere"], "nowhere"),
        (["sweep", "nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["validate", f"--config={CONF}/toy.yaml"], "--ckpt_path"),
    ],
)
def test_every_command_ends_a_refusal_with_status_2(arguments, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cm-lightning", *arguments])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


def test_ranks_say_one_line_each(tmp_path):
    options = toy("--trainer.devices=2", "--data.batch_size=41", "--trainer.strategy=ddp")
    done = fork("-m", "cm_lightning", "fit", *options, cwd=tmp_path, check=False)
    assert done.returncode == 2
    errors = [text for text in done.stderr.splitlines() if "error: " in text]
    assert "error: data.batch_size 41 is that of all ranks together: make it a multiple of 2" in errors
    assert len(errors) <= 2
    assert "Traceback" not in done.stderr
