"""Text-to-image from the command line: the recipes of experiments/lcm_lora, two steps each, and their results."""

import contextlib
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

pytest.importorskip("diffusers")

from diffusers import DiffusionPipeline, LCMScheduler

from cm_lightning.__main__ import main as cm_lightning
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.commands.edit import main as edit
from cm_lightning.commands.evaluate import main as evaluate
from cm_lightning.commands.export import main as export
from cm_lightning.commands.sample import main as sample
from cm_lightning.commands.sweep import main as sweep
from cm_lightning.core.noise import generators
from cm_lightning.data.captioned_folder import CaptionedFolder
from cm_lightning.data.captions import CaptionedMNIST
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.latent import few_step
from cm_lightning.modules.latent_consistency import LatentConsistencyDistillation
from cm_lightning.modules.loading import load_module, load_trained
from tests.cli.test_cli import failure
from tests.helpers import few_digits
from tests.processes import ROOT

RECIPES = ROOT / "experiments/lcm_lora"
CALLBACKS = "{ema: {decay: 0.5}, throughput: null, prompts: {steps: [1], num_samples: 2}, progress: null}"
PLAIN = "{throughput: null, progress: null}"


def fit(recipe, *options, callbacks=CALLBACKS):
    main(["fit", f"--config={RECIPES}/{recipe}.yaml", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
          "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu", f"--callbacks={callbacks}",
          "--data.batch_size=4", "--trainer.log_every_n_steps=1", *options])  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which all the small recipes were run, in the order of their page, with what they printed."""
    folder = tmp_path_factory.mktemp("lcm")
    with (
        pytest.MonkeyPatch.context() as patch,
        open(folder / "said.txt", "w") as said,
        contextlib.redirect_stdout(said),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cm-lightning"])
        torch.set_num_threads(1)
        few_digits(patch, 20)
        patch.setattr("cm_lightning.callbacks.prompt_grid._SHOWN", 10)
        fit("digits/autoencoder", callbacks=PLAIN)
        fit("digits/clip", callbacks=PLAIN)
        for base in ("sd15", "sd21", "sdxl"):
            fit(f"digits/{base}", "--model.cache=null")
        fit("digits/lora", "--model.cache=null")
        fit("digits/lcm", "--model.cache=null")
        for recipe in ("lightning", "mse", "merge", "dmd2"):
            fit(f"../lightning/digits/{recipe}", "--model.cache=null")
        fit("pairs/clip", callbacks=PLAIN)
        for recipe in ("base", "lora", "lcm"):
            fit(f"pairs/{recipe}", "--model.cache=null")
        strengthen(folder / LORA / "pytorch_lora_weights.safetensors")
    return folder


def strengthen(path):
    """Give an adapter that was hardly trained a visible effect."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    g = torch.Generator().manual_seed(0)
    for key, tensor in tensors.items():
        if "lora_B" in key:
            tensor.copy_(0.05 * torch.randn(tensor.shape, generator=g))
    save_file(tensors, path, metadata)


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    few_digits(monkeypatch, 20)


BASE = "runs/lcm-sd15/version_0/export"
LORA = "runs/lcm-sd15-lora/version_0/export"
FULL = "runs/lcm-sd15-full/version_0/export"


def test_every_run_exports_what_it_trained(folder):
    distilled = ("lightning-sd21", "lightning-sd21-mse", "lightning-sd21-merge", "dmd2-sd21")
    for run in (*(f"lcm-{run}" for run in ("sd15", "sd21", "sdxl", "sd15-full", "pairs", "pairs-full")), *distilled):
        assert DiffusionPipeline.from_pretrained(f"runs/{run}/version_0/export").unet is not None
    assert [few_step.told(f"runs/{run}").scheduler for run in distilled] == ["euler"] * 3 + ["lcm"]
    assert isinstance(DiffusionPipeline.from_pretrained(FULL).scheduler, LCMScheduler)
    names = {path.name for path in (folder / LORA).iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "lcm_kohya.safetensors", "scheduler"}
    size = Image.open("runs/lcm-pairs-lora/version_0/samples/step_000002_steps1.png").size
    assert size == (10 * 66 + 2, 34 + 2)
    with open("runs/lcm-sd15-lora/version_0/metrics.csv") as file:
        assert {"val/frechet_mnist_steps1", "val/accuracy_steps1", "train/mu"} <= set(csv.DictReader(file).fieldnames)


@pytest.mark.parametrize(
    "model",
    [["--pipeline", BASE], ["--pipeline", BASE, "--lora", LORA], ["--pipeline", FULL]],
    ids=["base", "LoRA", "full LCM"],
)
def test_the_end_of_a_run_says_how_to_draw(model, tmp_path):
    lines = [line for line in Path("said.txt").read_text().splitlines() if line.startswith("to draw: ")]
    commands = [shlex.split(line.removeprefix("to draw: ")) for line in lines]
    start = ["cm-lightning", "sample", *model, "--prompt"]
    (command,) = [command for command in commands if command[:-1] == start]
    assert command[-1] in CaptionedMNIST().prompts(1)[0]
    sample([*command[2:], f"--output={tmp_path}/drawn.png"])
    assert Image.open(tmp_path / "drawn.png").size == (32, 32)


def test_a_checkpoint_is_a_module_again():
    m = load_trained("runs/lcm-sd15-lora/version_0/checkpoints/last.ckpt")
    assert isinstance(m, LatentConsistencyDistillation)
    callbacks = read_checkpoint("runs/lcm-sd15-lora/version_0/checkpoints/last.ckpt")["callbacks"]
    (average,) = [state["average"] for state in callbacks.values() if "average" in state]
    torch.testing.assert_close(dict(m.backbone.state_dict()), dict(average))
    with pytest.raises(CheckpointError, match="give its export to sample --pipeline"):
        load_module("runs/lcm-sd15-lora/version_0/checkpoints/last.ckpt")


def test_a_checkpoint_is_exported_again(tmp_path, capsys):
    checkpoint = "--ckpt_path=runs/lcm-sd15-lora/version_0/checkpoints/last.ckpt"
    export([checkpoint, "--format=diffusers", f"--output={tmp_path}/again"])
    assert capsys.readouterr().out == f"diffusers: {tmp_path}/again\n"
    for name in ("lcm_kohya.safetensors", "scheduler/scheduler_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (Path(LORA) / name).read_bytes()
    with pytest.raises(ConfigError, match="--format onnx: a LatentConsistencyDistillation has only one format"):
        export([checkpoint, "--format=onnx", f"--output={tmp_path}/onnx"])


def pixels(path):
    image = Image.open(path)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3).float()


def test_prompts_are_drawn_in_few_steps(capsys):
    prompt = ["--prompt=a handwritten seven", "--seed=3"]
    sample([f"--pipeline={BASE}", f"--lora={LORA}", *prompt, "--steps=4", "--guidance=1.5", "--output=a.png"])
    assert "1 images of 8 evaluations each: a.png" in capsys.readouterr().out
    pipe = DiffusionPipeline.from_pretrained(BASE)
    pipe.load_lora_weights(LORA)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe("a handwritten seven", num_inference_steps=4, guidance_scale=1.5, generator=generators(3, [0])[0])
    theirs.images[0].save("theirs.png")
    assert (pixels("a.png") - pixels("theirs.png")).abs().max() <= 1
    sample([f"--pipeline={BASE}", "--scheduler=lcm", *prompt, "--steps=4", "--guidance=1.5", "--output=base.png"])
    assert (pixels("a.png") - pixels("base.png")).abs().max() > 10  # the adapter matters
    sample([f"--pipeline={FULL}", *prompt, "--prompt=a two", "--num_samples=3", "--guidance=2", "--output=many"])
    assert "3 images of 4 evaluations each" in capsys.readouterr().out
    assert len(list(Path("many").iterdir())) == 3
    sample([f"--pipeline={BASE}", *prompt, "--negative_prompt=a two", "--num_samples=2", "--guidance=4"])


def test_an_image_is_where_drawing_starts(capsys):
    Image.new("RGB", (34, 33), (255, 255, 255)).save("white.png")
    common = [f"--pipeline={BASE}", f"--lora={LORA}:1.0", "--prompt=a six", "--num_samples=2", "--image=white.png"]
    sample([*common, "--steps=4", "--strength=0.5", "--output=from_white.png"])
    assert "2 images of 2 evaluations each" in capsys.readouterr().out
    assert Image.open("from_white.png").size == (2 * 34 + 2, 34 + 2)
    Image.new("RGB", (34, 33)).save("black.png")
    sample([*common[:-1], "--image=black.png", "--steps=4", "--strength=0.5", "--output=from_black.png"])
    assert (pixels("from_white.png") - pixels("from_black.png")).abs().mean() > 1  # something of it is left
    assert "makes less than one step" in failure(capsys, *common, "--steps=1", run=sample)


@pytest.mark.parametrize(
    ("model", "evaluations"),
    [
        ([BASE, f"--lora={LORA}"], 4),
        ([FULL], 4),
        (["runs/lightning-sd21"], None),
        (["runs/dmd2-sd21"], None),
    ],
    ids=["LoRA", "full LCM", "Lightning", "DMD2"],
)
def test_a_part_of_an_image_is_drawn_anew(model, evaluations, capsys):
    Image.new("RGB", (32, 32), (200, 10, 10)).save("red.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 32, 12))
    mask.save("mask.png")
    pipeline, *parts = model
    edit(["inpaint", f"--pipeline={pipeline}", *parts, "--prompt=a six", "--image=red.png", "--mask=mask.png",
          "--num_samples=2", "--output=edited"])  # fmt: skip
    expected = evaluations or few_step.told(pipeline).steps
    assert f"evaluations of the network for each: {expected}\n" in capsys.readouterr().out
    first, second = (pixels(f"edited/00000{i}.png") for i in range(2))
    given = pixels("red.png")
    assert torch.equal(first[12:], given[12:])
    assert torch.equal(second[12:], given[12:])
    assert (first[:12] - given[:12]).abs().mean() > 10
    assert not torch.equal(first, second)


CELLS = ["--num_samples=12", "--steps=1,2", "--latency=100"]
MODELS = {"base": f"b={BASE}", "lora": f"l={BASE}+{LORA}", "full": f"f={FULL}"}
CLIP = {"lora": ["--clip=runs/lcm-clip/version_0/export"]}


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    """The folders with the measurements of each model."""
    folders = {name: tmp_path_factory.mktemp(name) for name in MODELS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        few_digits(patch, 20)
        for name, output in folders.items():
            evaluate([f"--model={MODELS[name]}", *CELLS, "--guidance=1,2", f"--output={output}", *CLIP.get(name, [])])
    return folders


def cells(output):
    return [json.loads(path.read_text()) for path in (output / "cells").iterdir()]


@pytest.mark.parametrize("model", MODELS)
def test_models_are_measured_cell_by_cell(model, measured):
    output = measured[model]
    doubled = model != "full"
    assert {(c["steps"], c["guidance"], c["nfe"]) for c in cells(output)} == {
        (1, 1.0, 1), (2, 1.0, 2), (1, 2.0, 1 + doubled), (2, 2.0, 2 + 2 * doubled),
    }  # fmt: skip
    kinds, classifiers = ("frechet", "kid", "precision", "recall"), ("mnist", "mnist2")
    names = {f"{kind}_{name}" for kind in kinds for name in classifiers} | {"accuracy", "accuracy2"}
    names |= {"clip_score"} if model in CLIP else set()
    assert all(set(c["scores"]) == names for c in cells(output))
    assert len(list((output / "samples").iterdir())) == 4
    assert (output / "heat_maps.png").is_file()
    assert "| 100000 ms |" in (output / "grid.md").read_text().replace("1e+05", "100000")


def test_base_adapter_and_lcm_differ(measured):
    scores = [
        next(c["scores"]["frechet_mnist"] for c in cells(output) if (c["steps"], c["guidance"]) == (2, 2.0))
        for output in measured.values()
    ]
    assert len(set(scores)) == 3


def test_what_was_measured_is_kept(measured, tmp_path):
    output = shutil.copytree(measured["base"], tmp_path / "grid")
    first = {path: path.read_text() for path in (output / "cells").iterdir()}
    path = next(iter(first))  # a score that no measurement gives
    first[path] = first[path].replace('"frechet_mnist": ', '"frechet_mnist": 1')
    path.write_text(first[path])
    evaluate([f"--model={MODELS['base']}", *CELLS, "--guidance=1,2,3", f"--output={output}"])
    again = {path: path.read_text() for path in (output / "cells").iterdir()}
    assert len(again) == 6
    assert {path: again[path] for path in first} == first


def test_a_folder_of_captioned_images_is_measured_by_inception(tmp_path, inception_file):
    for i in range(10):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (10 * i, 0, 0)).save(tmp_path / f"set/{i:02d}.png")
        (tmp_path / f"set/{i:02d}.txt").write_text(f"the digit {'one' if i % 2 else 'two'}")
    evaluate([f"--model=b={BASE}", f"--data={tmp_path}/set", f"--inception={inception_file}", "--num_samples=3",
              "--steps=1", "--guidance=1", "--clip=runs/lcm-clip/version_0/export",
              f"--output={tmp_path}/out"])  # fmt: skip
    (cell,) = cells(tmp_path / "out")
    assert set(cell["scores"]) == {"fid", "kid", "precision", "recall", "clip_score"}
    assert CaptionedFolder(str(tmp_path / "set")).split("val")[0][1] == "the digit one"


class Trial:
    """In place of the process of a trial: its command in this process, which has few digits to measure against."""

    pid, returncode = 0, 0

    def __init__(self, command, env, **_):
        assert command[:4] == ["/usr/bin/env", "python", "-m", "cm_lightning"]
        with patch.dict(os.environ, env), patch.object(sys, "argv", ["cm-lightning", *command[4:]]):
            cm_lightning()

    def poll(self):
        return self.returncode


def test_the_sweep_measures_a_cell_a_trial(tmp_path, monkeypatch):
    processes = SimpleNamespace(Popen=Trial, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("cm_lightning.sweep.trials.subprocess", processes)
    content = yaml.safe_load((ROOT / "sweeps/lcm_lora.yaml").read_text())
    content["parameters"] = {"model": {"value": f"l={BASE}+{LORA}"}, "steps": {"values": [1, 2]},
                             "guidance": {"value": 1.0}, "num_samples": {"value": 10}}  # fmt: skip
    content["command"] = [part.replace("online", "offline").replace("runs/lcm-grid", str(tmp_path / "grid"))
                          for part in content["command"]]  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    sweep([str(tmp_path / "sweep.yaml"), f"--output={tmp_path}/trials"])
    with open(tmp_path / "trials/results.csv") as file:
        results = list(csv.DictReader(file))
    assert [row["state"] for row in results] == ["finished", "finished"]
    expected = {str(c["steps"]): c["scores"]["frechet_mnist"] for c in cells(tmp_path / "grid")}
    assert {row["steps"]: float(row["frechet_mnist"]) for row in results} == expected  # each trial its own
    assert len(set(expected.values())) == 2


def test_every_cell_of_the_shipped_sweep_is_a_command(capsys):
    sweep([str(ROOT / "sweeps/lcm_lora.yaml"), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * (1 + 3 + 3) * 4 * 4  # bases, three seeds of each student
    assert "evaluate --data=CaptionedMNIST" in lines[0]
    assert "--guidance=1.0" in lines[0]


@pytest.mark.parametrize(
    ("recipe", "trained", "frozen"),
    [
        ("sd15", "Adapter: 67,252,224", "base of 1.60 GiB"),
        ("sd21", "Adapter: 67,776,512", "base of 1.61 GiB"),
        ("sdxl", "Adapter: 196,751,360", "base of 4.78 GiB"),
        ("sd15_full", "UNet2DConditionModel: 859,602,884", "1 x target of 3.20 GiB + base of 1.60 GiB"),
        ("sdxl_full", "UNet2DConditionModel: 2,567,545,604", " + base of 4.78 GiB"),
        ("../lightning/sdxl", "UNet2DConditionModel: 2,764,215,044", "4 x critic of 5.12 GiB + base of 4.78 GiB"),
        ("../lightning/sdxl_lora", "Adapter: 196,751,360", "1 x teacher of 0.73 GiB + 4 x critic of 5.12 GiB"),
        ("../lightning/dmd2_sdxl", "UNet2DConditionModel: 2,567,463,684", "4 x critic of 9.66 GiB + base of 4.78 GiB"),
        ("../lightning/dmd2_sd15", "UNet2DConditionModel: 859,520,964", "4 x critic of 3.30 GiB + base of 1.60 GiB"),
    ],
)
def test_the_recipes_of_real_models_say_what_they_would_be(recipe, trained, frozen, capsys):
    """No files are needed; the numbers of parameters are the published ones."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={RECIPES}/{recipe}.yaml", "--dry_run", "--trainer.accelerator=cpu"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert trained in text
    assert frozen in text
    assert ("1,000 steps x 12 images" in text) == ("lightning" not in recipe)


def test_wrong_options_get_a_line(capsys, tmp_path):
    with pytest.raises(ConfigError, match="give NAME=PIPELINE"):
        evaluate(["--model=x"])
    with pytest.raises(ConfigError, match="--data nowhere: choose one of CaptionedMNIST, CaptionedPairs"):
        evaluate([f"--model=b={BASE}", "--data=nowhere", f"--output={tmp_path}"])
    for option, line in (("--device=gpu", "--device gpu is not a device"), ("--steps=60", "cannot draw this")):
        with pytest.raises(ConfigError, match=line):
            sample([f"--pipeline={BASE}", f"--lora={LORA}", "--prompt=x", option])
    high = failure(capsys, f"--pipeline={BASE}", f"--lora={LORA}", "--prompt=x", "--height=100", run=sample)
    assert "--height: must be a multiple of 8 above 0, got 100" in high
    with pytest.raises(ConfigError, match="nothing has been measured"):
        evaluate([f"--output={tmp_path}"])
    with pytest.raises(CheckpointError, match=r"no model_index.json in ./nowhere"):
        sample(["--pipeline=./nowhere", "--prompt=x"])
    with pytest.raises(CheckpointError, match="no LoRA at nowhere"):
        sample([f"--pipeline={BASE}", "--lora=nowhere", "--prompt=x"])
    with pytest.raises(ConfigError, match=r"--lora nowhere:much: give PATH or PATH:WEIGHT"):
        sample([f"--pipeline={BASE}", "--lora=nowhere:much", "--prompt=x"])
    wrong = failure(capsys, f"--pipeline={BASE}", "--prompt=x", "--output=a.npz", run=sample)
    assert "give a .png, or a folder" in wrong
    path = "--model.base.init_args.path=./nowhere"
    line = failure(capsys, "fit", f"--config={RECIPES}/digits/lora.yaml", path).splitlines()[-1]
    assert line == "error: no model_index.json in ./nowhere: give a folder of diffusers, or a name on the hub"
