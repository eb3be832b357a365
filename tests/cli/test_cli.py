"""The command line, end to end, in this process."""

import contextlib
import csv
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import lightning as L
import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

from cm_lightning import cli
from cm_lightning.checkpoint import CONFIG_KEY, read_checkpoint, weights
from cm_lightning.cli import main
from cm_lightning.commands.sample import main as sample
from cm_lightning.config_files import lineage
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.modules.loading import load_module
from cm_lightning.online import wandb_run_ends
from cm_lightning.start import Start
from cm_lightning.steps import steps_taken
from tests.data.files import write_cifar10, write_imagenet64, write_mnist
from tests.helpers import few_digits

CONF = Path(__file__).parents[1] / "conf"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """The folder of a finished toy run."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["cm-lightning"])
        main(["fit", f"--config={CONF}/toy.yaml"])
    return folder / "runs/toy/version_0"


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def failure(capsys, *arguments, run=main):
    with pytest.raises(SystemExit) as stop:
        run(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip()


def test_fit_leaves_metrics_configuration_and_checkpoint_in_its_own_directory(toy_run):
    metrics = rows(toy_run / "metrics.csv")
    assert [row["step"] for row in metrics if row["train/loss"]] == ["1", "3", "5", "7", "9", "11"]
    assert all(float(row["train/images_per_s"]) > 0 for row in metrics if row["train/loss"])
    assert sum(bool(row["val/loss"]) for row in metrics) == 2
    config = yaml.safe_load((toy_run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 12
    checkpoint = read_checkpoint(toy_run / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 12
    assert checkpoint[CONFIG_KEY]["class_path"].endswith("ConsistencyTraining")


def test_the_saved_configuration_runs_again_to_the_same_weights(toy_run):
    main(["fit", f"--config={toy_run}/config.yaml"])
    again = read_checkpoint("runs/toy/version_0/checkpoints/last.ckpt")["state_dict"]
    torch.testing.assert_close(again, read_checkpoint(toy_run / "checkpoints/last.ckpt")["state_dict"], rtol=0, atol=0)


def test_load_module_gives_the_averaged_or_the_raw_weights(toy_run):
    path = toy_run / "checkpoints/last.ckpt"
    checkpoint = read_checkpoint(path)
    for which, loaded in (("ema", load_module(path)), ("raw", load_module(path, "raw"))):
        state = loaded.backbone.state_dict()
        torch.testing.assert_close(state, weights(checkpoint, which), rtol=0, atol=0)
        assert not loaded.training
    assert load_module(path).target_network.rate.mu == 0.5
    assert load_module(path).sample(3).shape == (3, 2)


FOREIGN = "tests.foreign.Net"


@pytest.mark.parametrize(
    "plant",
    [
        lambda model: model["init_args"]["backbone"].update(class_path=FOREIGN),
        lambda model: model["init_args"].update(backbone=FOREIGN),
        lambda model: model["init_args"].update(backbone="net.yaml"),
        lambda model: model["init_args"]["backbone"]["init_args"].update(optimizer={"class_path": FOREIGN}),
        lambda model: model["init_args"].update(curriculum={"class_path": FOREIGN}),
        lambda model: model.update(dict_kwargs={"optimizer": {"class_path": FOREIGN}}),
    ],
)
def test_no_class_of_a_checkpoint_is_imported_that_is_not_trusted(toy_run, plant):
    checkpoint = read_checkpoint(toy_run / "checkpoints/last.ckpt")
    plant(checkpoint[CONFIG_KEY])
    Path("net.yaml").write_text(f"class_path: {FOREIGN}\n")
    torch.save(checkpoint, "planted.ckpt")
    with contextlib.suppress(CheckpointError):  # what is out of place may also be passed over
        load_module("planted.ckpt")
    assert "tests.foreign" not in sys.modules


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (lambda model: model["init_args"]["backbone"].update(class_path="cm_lightning.data.folder.Path"),
         "it names cm_lightning.data.folder.Path, which is not a class of that package"),
        (lambda model: model.update(class_path="cm_lightning.files.os.system"),
         "'cm_lightning.files' is not a package"),
    ],
)  # fmt: skip
def test_what_a_module_of_the_suite_imports_is_not_a_class_of_the_suite(toy_run, plant, reason):
    checkpoint = read_checkpoint(toy_run / "checkpoints/last.ckpt")
    plant(checkpoint[CONFIG_KEY])
    torch.save(checkpoint, "planted.ckpt")
    with pytest.raises(CheckpointError, match=f"planted.ckpt: .*{reason}"):
        load_module("planted.ckpt")


def test_a_trusted_package_may_supply_classes(toy_run):
    checkpoint = read_checkpoint(toy_run / "checkpoints/last.ckpt")
    checkpoint[CONFIG_KEY]["init_args"]["backbone"]["class_path"] = "tests.helpers.OwnMLP"
    torch.save(checkpoint, "own.ckpt")
    with pytest.raises(CheckpointError, match=r"tests.helpers.OwnMLP.*--trust tests"):
        load_module("own.ckpt")
    assert load_module("own.ckpt", trust=["tests"]).sample(2).shape == (2, 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.pop(CONFIG_KEY),
        lambda c: c.pop("state_dict"),
        lambda c: c["state_dict"].pop("backbone.head.bias"),
        lambda c: c[CONFIG_KEY].update(class_path="cm_lightning.Nonsense"),
        lambda c: c[CONFIG_KEY]["init_args"]["backbone"]["init_args"].update(width="wide"),
        lambda c: c[CONFIG_KEY]["init_args"]["backbone"]["init_args"].update(width=8),
        lambda c: c[CONFIG_KEY].update(init_args=[1]),
        lambda c: c[CONFIG_KEY].update(class_path="cm_lightning.ResidualMLP", init_args={}),
    ],
)
def test_unsuitable_checkpoints_are_named(toy_run, damage):
    checkpoint = read_checkpoint(toy_run / "checkpoints/last.ckpt")
    damage(checkpoint)
    torch.save(checkpoint, "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"bad.ckpt"):
        load_module("bad.ckpt")


def test_truncated_and_foreign_files_are_named(toy_run):
    data = (toy_run / "checkpoints/last.ckpt").read_bytes()
    for content in (data[: len(data) // 2], b"", b"hello", b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."):
        Path("bad.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad.ckpt cannot be read"):
            load_module("bad.ckpt")
    assert not Path("pwned").exists()


def test_a_checkpoint_never_overrides_the_command_line(toy_run):
    last = toy_run / "checkpoints/last.ckpt"
    main(["fit", f"--config={CONF}/toy.yaml", f"--ckpt_path={last}", "--trainer.max_steps=14", "--model.sigma_max=40"])
    config = read_checkpoint("runs/toy/version_0/checkpoints/last.ckpt")[CONFIG_KEY]
    assert config["init_args"]["sigma_max"] == 40


def test_last_is_the_newest_run_and_a_missing_one_is_an_error(toy_run, monkeypatch, capsys):
    error = failure(capsys, "fit", f"--config={CONF}/toy.yaml", "--ckpt_path=last")
    assert error.endswith("no checkpoint below runs/toy; leave the option out to start a new run")
    monkeypatch.chdir(toy_run.parents[2])
    main(["validate", f"--config={CONF}/toy.yaml", "--ckpt_path=last"])
    assert "val/loss" in capsys.readouterr().out


def test_digits_are_measured_drawn_and_tested(monkeypatch, capsys):
    few_digits(monkeypatch, 4)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")  # the statistics of few digits are not those of all
    main(["fit", f"--config={CONF}/image.yaml"])
    run = Path("runs/image/version_0")
    (last,) = [row for row in rows(run / "metrics.csv") if row["val/loss"]]
    assert float(last["val/accuracy_floor"]) > 0.95
    assert float(last["val/frechet_mnist_nfe1"]) > float(last["val/frechet_mnist_floor"]) > 0
    assert 0 <= float(last["val/accuracy_nfe2"]) <= 1
    assert Image.open(run / "samples/step_000004_nfe2.png").size == (302, 62)
    assert "real held-out" in capsys.readouterr().out
    main(["test", f"--config={CONF}/image.yaml", f"--ckpt_path={run}/checkpoints/last.ckpt"])
    (tested,) = [row for row in rows("runs/image/version_1/metrics.csv") if row["test/frechet_mnist_nfe1"]]
    # the same weights, noise and reference, and so the same score
    assert float(tested["test/frechet_mnist_nfe1"]) == pytest.approx(float(last["val/frechet_mnist_nfe1"]), rel=1e-4)
    main(["predict", f"--config={CONF}/image.yaml", f"--ckpt_path={run}/checkpoints/last.ckpt"])

    arguments = [f"--ckpt_path={run}/checkpoints/last.ckpt", "--num_samples=6", "--labels=3,5", "--steps=2"]
    sample([*arguments, "--output=a.png", "--output=a.npz", "--output=folder", "--columns=3"])
    sample([*arguments, "--output=b.npz", "--batch_size=4", "--seed=0"])
    sample([*arguments, "--output=c.npz", "--seed=1"])
    a, b, c = (np.load(f"{name}.npz") for name in "abc")
    assert a["images"].shape == (6, 28, 28, 1)
    assert a["labels"].tolist() == [3, 5] * 3
    assert np.abs(a["images"].astype(int) - b["images"]).max() <= 1  # convolutions may round by the batch
    assert not np.array_equal(a["images"], c["images"])
    assert Image.open("a.png").size == (92, 62)
    pixels = np.asarray(Image.open("folder/000001_class5.png").convert("L"))
    assert np.array_equal(pixels, a["images"][1, :, :, 0])


def test_each_wandb_run_is_offline_in_its_own_folder_and_holds_the_configuration_under_one_key(monkeypatch):
    short, loggers, make = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"], [], cli.wandb_logger
    monkeypatch.setattr(cli, "wandb_logger", lambda *args, **kw: loggers.append(make(*args, **kw)) or loggers[-1])
    for name in ("one", "two"):
        main(["fit", f"--config={CONF}/toy.yaml", "--wandb=offline", f"--trainer.logger.init_args.name={name}", *short])
        assert wandb.run is None
    wandb.teardown()  # which waits until the process that writes the files has ended
    for name, logger in zip(("one", "two"), loggers, strict=True):
        assert logger.experiment.offline
        config = logger.experiment.config["cli"]
        assert config["model"]["class_path"].endswith("ConsistencyTraining")
        assert config["trainer"]["logger"]["init_args"]["name"] == name
        (file,) = Path(f"runs/{name}").glob("wandb/offline-run-*/*.wandb")
        assert b"train/loss" in file.read_bytes()
        assert Path(f"runs/{name}/version_0/metrics.csv").exists()


def test_a_wandb_run_that_is_there_already_continues(monkeypatch):
    ended = []
    theirs, ours = (SimpleNamespace(finish=lambda exit_code, who=who: ended.append((who, exit_code))) for who in "ab")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=theirs))
    with wandb_run_ends():
        pass
    assert ended == []
    for stop, status in ((None, 0), (SystemExit(0), 0), (SystemExit(2), 1), (KeyboardInterrupt(), 1)):
        sys.modules["wandb"].run = None
        with contextlib.suppress(BaseException), wandb_run_ends():
            sys.modules["wandb"].run = ours
            if stop:
                raise stop
        assert ended.pop() == ("b", status)


def test_errors_are_a_line_that_names_the_option(toy_run, capsys):
    toy = f"--config={CONF}/toy.yaml"
    assert "nowhere.yaml" in failure(capsys, "fit", "--config=nowhere.yaml")
    assert "no option --model.curriculum.fractoin of WarmUp; perhaps fraction is meant" in failure(
        capsys, "fit", toy, "--model.curriculum=WarmUp", "--model.curriculum.fractoin=1"
    )
    assert "trainer.max_steps" in failure(capsys, "fit", toy, "--trainer.max_steps=many")
    assert "--model.image_shape=[2]" in failure(capsys, "fit", toy, "--model.image_shape=[3]")
    assert "no checkpoint at nowhere.ckpt" in failure(capsys, "test", toy, "--ckpt_path=nowhere.ckpt")
    assert "give --ckpt_path FILE" in failure(capsys, "test", toy)
    last = f"--ckpt_path={toy_run}/checkpoints/last.ckpt"
    assert "do not fit this model" in failure(capsys, "test", toy, last, "--model.backbone.width=8")
    Path("half.ckpt").write_bytes((toy_run / "checkpoints/last.ckpt").read_bytes()[:999])
    assert "half.ckpt cannot be read" in failure(capsys, "test", toy, "--ckpt_path=half.ckpt")
    assert "no checkpoint below runs/ConsistencyTraining; leave the option out" in failure(
        capsys, "fit", toy, "--trainer.logger=false", "--callbacks=null", "--ckpt_path=last"
    )
    Path("loop.yaml").write_text("base: loop.yaml\n")
    assert "builds on itself" in failure(capsys, "fit", "--config=loop.yaml")
    assert "set --data.root" in failure(capsys, "fit", toy, "--data=FashionMNIST", "--data.root=nowhere")
    assert "set measures to an EnergyDistance of dim 2" in failure(capsys, "fit", toy, "--callbacks.quality={}")


def test_distillation_by_the_command_line(toy_run, capsys):
    toy = [f"--config={CONF}/toy.yaml", "--trainer.max_steps=3", "--trainer.val_check_interval=3"]
    main(["fit", *toy, "--model=DiffusionModule", "--trainer.logger.init_args.name=teacher"])
    Path("runs/teacher/version_0/checkpoints/last.ckpt").rename("teacher.ckpt")
    student = [*toy, "--model=ConsistencyDistillation", "--trainer.logger.init_args.name=student"]
    main(["fit", *student, "--model.teacher=teacher.ckpt"])
    Path("teacher.ckpt").rename("away.ckpt")
    last = "runs/student/version_0/checkpoints/last.ckpt"
    assert load_module(last).sample(3).shape == (3, 2)  # a student samples without its teacher
    main(["test", *student, "--model.teacher=teacher.ckpt", f"--ckpt_path={last}"])
    main(["fit", *student, "--model.teacher=away.ckpt", f"--ckpt_path={last}", "--trainer.max_steps=5"])
    assert read_checkpoint("runs/student")["global_step"] == 5

    error = failure(capsys, "fit", *student, "--model.teacher=teacher.ckpt")
    assert error.endswith("no checkpoint at teacher.ckpt: set --model.teacher to a DiffusionModule's checkpoint")
    assert "not a DiffusionModule" in failure(capsys, "fit", *student, f"--model.teacher={last}")
    assert "teacher" in failure(capsys, "fit", *student)  # is required
    assert "no option --model.teacher of ConsistencyTraining" in failure(
        capsys, "fit", *toy, "--model.teacher=away.ckpt"
    )


def test_a_teacher_predicts_with_its_own_number_of_steps(toy_run):
    main(["predict", f"--config={toy_run}/config.yaml", f"--ckpt_path={toy_run}/checkpoints/last.ckpt"])
    toy = [f"--config={CONF}/toy.yaml", "--model=DiffusionModule", "--model.sampler=DDIM"]
    main(["fit", *toy, "--trainer.max_steps=2", "--trainer.val_check_interval=2"])
    last = "runs/toy/version_1/checkpoints/last.ckpt"
    main(["predict", *toy, f"--ckpt_path={last}"])
    assert load_module(last).default_steps == 50


def test_the_last_steps_are_in_the_last_checkpoint():
    short = ["--trainer.max_steps=7", "--trainer.val_check_interval=7"]  # saved every 3 steps
    main(["fit", f"--config={CONF}/toy.yaml", *short])
    assert read_checkpoint("runs/toy/version_0/checkpoints/last.ckpt")["global_step"] == 7


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda p: "/".join(p.parts[-2:]))
def test_every_shipped_experiment_saves_its_end(path):
    named = [yaml.safe_load(p.read_text()).get("callbacks") or {} for p in lineage(path)]
    entries = [names["save_last"] for names in named if "save_last" in names]
    assert None not in entries
    assert entries or not any(named)


def test_errors_of_sample(toy_run, capsys):
    last = f"--ckpt_path={toy_run}/checkpoints/last.ckpt"
    assert "--num_samples" in failure(capsys, last, "--num_samples=0", run=sample)
    assert "--labels: must be a whole number" in failure(capsys, last, "--labels=one", run=sample)
    assert "--output x.jpg" in failure(capsys, last, "--output=x.jpg", run=sample)
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere"):
        sample(["--ckpt_path=nowhere"])
    with pytest.raises(ConfigError, match="are not images: write them"):
        sample([last])
    with pytest.raises(ConfigError, match="--device nonsense"):
        sample([last, "--device=nonsense", "--output=x.npz"])
    sample([last, "--output=x.npz", "--num_samples=3"])
    assert np.load("x.npz")["images"].shape == (3, 2)


def test_an_error_of_a_loader_process_is_one_line(capsys):
    write_images("images")
    Path("images/7.png").write_bytes(b"no image")
    options = ["--trainer.precision=32-true", "--trainer.accelerator=cpu", "--model.backbone.channels=8"]
    loader = ["--data.root=images", "--data.num_workers=1", "--data.batch_size=4", "--callbacks=null"]
    error = failure(capsys, "fit", f"--config={ROOT}/experiments/folder/ct.yaml", *options, *loader)
    assert error.splitlines()[-1] == "error: images/7.png cannot be read as an image: repair or remove it"


def test_a_configuration_builds_on_another_and_is_saved_whole(capsys):
    folder = Path("deep")
    folder.mkdir()
    (folder / "base.yaml").write_text((CONF / "toy.yaml").read_text())
    (folder / "middle.yaml").write_text("base: base.yaml\nmodel:\n  init_args:\n    sigma_max: 40\n")
    (folder / "top.yaml").write_text(
        "base: middle.yaml\ntrainer:\n  max_steps: 2\n  val_check_interval: 2\n"
        "model:\n  init_args:\n    curriculum:\n      class_path: WarmUp\n      init_args:\n"
        "        then: {class_path: ContinuousCurriculum, init_args: {stages: 3}}\n"
    )
    main(["fit", "--config=deep/top.yaml"])
    saved = yaml.safe_load(Path("runs/toy/version_0/config.yaml").read_text())
    model = saved["model"]["init_args"]
    assert model["sigma_max"] == 40
    assert model["backbone"]["init_args"]["width"] == 16
    assert model["curriculum"]["init_args"]["then"]["init_args"]["stages"] == 3
    assert saved["trainer"]["max_steps"] == 2
    assert not saved.get("base")
    (folder / "top.yaml").write_text("base: nowhere.yaml\n")
    assert "nowhere.yaml" in failure(capsys, "fit", "--config=deep/top.yaml")


EXPERIMENTS = sorted(
    path
    for path in (ROOT / "experiments").rglob("*.yaml")
    if path.stem not in ("base", "quick")
    and not {"lcm_lora", "lightning"} & {*path.parts}  # test_latent_cli.py runs those
)


def write_images(folder):
    for i in range(30):
        path = Path(f"{folder}/{i}.png")
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (70 + i, 90), (8 * i, 0, 200)).save(path)


class Watch(L.Callback):
    """Notes how a training went."""

    def on_train_start(self, trainer, pl_module):
        self.before = [parameter.detach().clone() for parameter in pl_module.parameters()]

    def on_train_end(self, trainer, pl_module):
        self.steps, self.loss = steps_taken(trainer), float(trainer.callback_metrics["train/loss"])
        after = pl_module.parameters()
        self.moved = any(not torch.equal(a, b) for a, b in zip(self.before, after, strict=True))
        del self.before


class Recipes:
    """The shipped recipes, each run once, with little data in the real formats, after those whose runs it names."""

    def __init__(self, monkeypatch):
        write_cifar10(Path("data"), monkeypatch)
        write_imagenet64(Path("data/imagenet64"))
        write_mnist(Path("clothes"))
        write_images("images")
        self.runs = {}

    def run(self, path):
        recipe = "".join(file.read_text() for file in lineage(path))
        for first in sorted(set(re.findall(r"runs/\w+-(\w+)", recipe))):
            self.run(path.with_name(f"{first}.yaml"))
        if path not in self.runs:
            self.runs[path] = fit_two_steps(path, *tiny_data(path), *tiny_parts(recipe))
        return self.runs[path]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("recipes"))
        yield Recipes(monkeypatch), Path.cwd()


def tiny_data(path):
    """Options that replace a data set by a little data."""
    if "mnist" in path.parts:
        return ["--data.source=embedded"]
    if "fashion" in path.parts:
        return ["--data.root=clothes"]
    if path.parent.name == "plane":
        return ["--data.num_points=100"]
    return ["--data.root=images", "--data.num_workers=0", "--data.size=32"] if "folder" in path.parts else []


def tiny_parts(recipe):
    """Options that replace the parts of a model that are large, or that have files."""
    embedding = ["--model.backbone.noise_embedding.init_args.width=8"] if "noise_embedding" in recipe else []
    if "start: {class_path" in recipe:
        embedding.append("--model.backbone.noise_embedding.init_args.start.init_args.width=8")
    shallow = ["--model.backbone.blocks=1"] if "blocks:" in recipe else []
    if re.search(r"attention_levels: \[\d", recipe):
        shallow += ["--model.backbone.multipliers=[1, 1]", "--model.backbone.attention_levels=[1]"]
    distance = ["--model.distance=L2"] if "LPIPS" in recipe else []  # its networks have a test of their own
    return embedding + shallow + distance


def tiny_width(path):
    """The option that makes a recipe's network small."""
    points = path.parent.name in ("plane", "reliability")
    return "--model.backbone.width=8" if points else "--model.backbone.channels=8"


def fit_two_steps(path, *options):
    watch, fit = Watch(), Start.fit
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1",
             "--trainer.accumulate_grad_batches=1", "--trainer.log_every_n_steps=1"]  # fmt: skip
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]
    tiny = [tiny_width(path), "--data.batch_size=2"]
    callbacks = "--callbacks={throughput: null, samples: null, quality: null, progress: null}"

    def watched(start, **given):
        start.trainer.callbacks.append(watch)
        fit(start, **given)

    with patch.object(Start, "fit", watched):
        main(["fit", f"--config={path}", *short, *here, *tiny, callbacks, *options])
    return watch


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_shipped_experiment_runs_two_steps(path, recipes, monkeypatch):
    shipped, folder = recipes
    monkeypatch.chdir(folder)
    run = shipped.run(path)
    assert run.steps == 2
    assert math.isfinite(run.loss)
    assert run.moved
