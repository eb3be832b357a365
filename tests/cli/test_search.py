"""The command search, and the file of found levels: who writes it, who reads it, and when it is not used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.unet import UNet
from cm_lightning.commands.export import main as export
from cm_lightning.commands.sample import main as sample
from cm_lightning.commands.search import main as search
from cm_lightning.errors import CmError
from cm_lightning.export.folder import write_export
from cm_lightning.metrics.measure import Measure
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.found_levels import levels_file, write_found_levels
from cm_lightning.modules.loading import load_module
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining

CKPT = "--ckpt_path=model"


def saved(kind=ConsistencyTraining, steps=7, folder="model", **options):
    torch.manual_seed(0)
    two = {"noise_embedding": TwoTimesEmbedding(8)} if kind is MeanFlow else {}
    network = UNet(1, 8, (1,), 1, (), patch=4, **two)
    write_export(kind(network, (1, 8, 8), **options), Path(folder), steps, "raw")


class Spread(Measure):
    """The standard deviation of samples, which is best at 0.5."""

    name = "frechet_spread"

    def start(self, across_ranks=True):
        self.reset()

    def to(self, device):
        pass

    def reset(self):
        self.samples = []

    def add(self, images, labels):
        self.samples.append(images)

    def compute(self):
        return {"frechet_spread": abs(float(torch.cat(self.samples).std()) - 0.5)}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cm_lightning.metrics.by_name.measure_named", lambda name, weights: Spread())
    (tmp_path / "model").mkdir()
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 100 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")


@pytest.fixture
def biased(monkeypatch):
    """A model whose samples vary too little, and least so at a level that is known."""

    def consistency(module, x, t, labels=None, network=None):
        scale = 0.5 / (0.25 + t**2).sqrt() * (1 - 0.2 * t / (1 + t))
        return scale[:, None, None, None] * x

    saved()
    monkeypatch.setattr(ConsistencyTraining, "consistency_function", consistency)


SEARCH = [CKPT, "--data=images", "--measure=frechet_spread", "--num_samples=60"]


def test_the_levels_are_found_drawn_written_and_sampled(biased, capsys):
    search([*SEARCH, "--steps=3", "--tolerance=0.05", "--output=curve.png"])
    told = capsys.readouterr().out
    found = load_module("model")
    # the best level of two steps in closed form is 1.0734
    assert found.default_sigmas(2) == [80.0, pytest.approx(1.0734, rel=0.25)]
    first, second, third = found.default_sigmas(3)
    assert [first, second] == found.default_sigmas(2)
    assert 0 < third < second
    assert "model/weights.sampling_sigmas.yaml" in told
    assert "2 steps: 80, " in told
    assert "before: 80, " in told
    assert Image.open("curve.png").size[0] > 300

    sample([CKPT, "--num_samples=2", "--steps=2", "--output=found.npz"])
    sample([CKPT, "--num_samples=2", f"--sigmas=80,{second}", "--output=given.npz"])
    assert np.array_equal(np.load("found.npz")["images"], np.load("given.npz")["images"])


def test_levels_that_are_no_better_are_not_written(biased, capsys):
    write_found_levels(levels_file("model"), {2: [80.0, 1.0734]}, 7, "by hand")
    before = levels_file("model").read_text()
    search([*SEARCH, "--points=1", "--tolerance=9"])  # a level at the middle alone
    assert "2 steps: no better levels were found, so the earlier ones stay" in capsys.readouterr().out
    assert levels_file("model").read_text() == before


def test_the_times_of_a_flow_map_are_searched(capsys):
    saved(MeanFlow)
    search([*SEARCH, "--points=2", "--tolerance=2"])
    module = load_module("model")
    levels = module.default_sigmas(2)
    assert levels[0] == 1
    assert 0 < levels[1] < 1


def test_other_levels_are_kept_and_an_export_has_all(capsys):
    saved(sampling_sigmas={4: [80.0, 5.0, 2.0, 1.0], 3: [80.0, 2.0, 1.0]})
    file = levels_file("model")
    write_found_levels(file, {2: [80.0, 1.5]}, 7, "by hand")
    write_found_levels(file, {3: [80.0, 9.0, 1.5]}, 7, "by hand")
    assert file.read_text().startswith("# by hand\n# The commands sample and export take these levels; remove the file")
    expected = {2: [80.0, 1.5], 3: [80.0, 9.0, 1.5], 4: [80.0, 5.0, 2.0, 1.0]}
    assert load_module("model").sampling_sigmas == expected
    export([CKPT, "--format=safetensors", "--output=again"])
    file.unlink()
    assert load_module("again").sampling_sigmas == expected
    assert json.loads(Path("again/config.json").read_text())["steps"] == 7


def test_levels_of_other_weights_are_not_used(capsys):
    saved(steps=7)
    write_found_levels(levels_file("model"), {2: [80.0, 1.5]}, 6, "by hand")
    assert load_module("model").sampling_sigmas == {}
    write_found_levels(levels_file("model"), {3: [80.0, 1.5, 1.0]}, 7, "by hand")
    assert load_module("model").sampling_sigmas == {3: [80.0, 1.5, 1.0]}


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "a: [", "trained_steps: 7", "trained_steps: 7\nsampling_sigmas: {2: [80.0]}", "sampling_sigmas: x",
     "trained_steps: 7\nsampling_sigmas: {2: [1.0, 80.0]}", "trained_steps: 7\nsampling_sigmas: {2: [81.0, 1.0]}",
     "trained_steps: 7\nsampling_sigmas: {two: [80.0, 1.0]}"],
)  # fmt: skip
def test_a_damaged_file_is_named(content):
    saved()
    levels_file("model").write_text(content)
    with pytest.raises(CmError, match=r"^model/weights\.sampling_sigmas\.yaml.*remove it, or search again$"):
        load_module("model")


def test_the_file_lies_beside_its_checkpoint(tmp_path):
    run = tmp_path / "runs/a/version_0/checkpoints"
    run.mkdir(parents=True)
    (run / "last.ckpt").touch()
    assert levels_file("runs/a").resolve() == run / "last.sampling_sigmas.yaml"
    assert str(levels_file("openai:files/cd.pt")) == "files/cd.sampling_sigmas.yaml"
    assert str(levels_file("diffusers:images")) == "images/sampling_sigmas.yaml"
    with pytest.raises(CmError, match="no checkpoint at nowhere"):
        levels_file("nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "--ckpt_path"),
        ("--ckpt_path=model --steps=1", "--steps: must be a whole number of at least 2"),
        ("--ckpt_path=model --num_samples=1", "--num_samples: must be a whole number of at least 2"),
        ("--ckpt_path=model --points=0", "--points: must be"),
        ("--ckpt_path=model --tolerance=0", "--tolerance: must be"),
        ("--ckpt_path=model --output=a.csv", "--output a.csv: give a .png"),
        ("--ckpt_path=model --output=/dev/null/a.png", "--output /dev/null/a.png"),
        ("--ckpt_path=nowhere", "no checkpoint at nowhere"),
        ("--ckpt_path=model", "--ckpt_path model does not state its training data: give --data"),
        ("--ckpt_path=model --data=nowhere", "--data: folder not found: nowhere"),
        ("--ckpt_path=model --data=MNIST", "--data has images of shape (1, 28, 28), but the model draws (1, 8, 8)"),
        ("--ckpt_path=model --data=images --labels=1", "the network is unconditional"),
        ("--ckpt_path=model --data=images --guidance=1", "guidance needs a class-conditional network"),
        ("--ckpt_path=model --data=images --measure=mid_grey", "--measure mid_grey cannot be measured"),
        ("--ckpt_path=denoiser --data=images", "holds a DiffusionModule: search takes a consistency model or a flow"),
    ],
)
def test_what_the_search_refuses(line, message, capsys):
    saved()
    Path("denoiser").mkdir()
    saved(DiffusionModule, folder="denoiser")
    with pytest.raises((SystemExit, CmError)) as refused:
        search(line.split())
    shown = capsys.readouterr().err if isinstance(refused.value, SystemExit) else str(refused.value)
    assert message in shown.splitlines()[-1]
    assert not levels_file("model").exists()
