"""The commands have one style of options, and sample prints its cost."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module

import numpy as np
import pytest
import torch

from cm_lightning.__main__ import _COMMANDS
from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.unet import UNet
from cm_lightning.commands.parser import CommandParser
from cm_lightning.commands.sample import main as sample
from cm_lightning.errors import ConfigError
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.training import ConsistencyTraining
from tests.helpers import images, trainer


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_shows_underscores_only(command, capsys):
    with suppress(SystemExit):
        import_module(f"cm_lightning.commands.{command.replace('-', '_')}").main(["--help"])
    text = capsys.readouterr().out
    assert f"usage: cm-lightning {command} " in text
    assert ("--output" in text) == (command != "serve")  # which writes no file
    assert not re.findall(r"--\w+-\w+", text)


@pytest.fixture
def parser():
    parser = CommandParser("x", "")
    parser.add_argument("file")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--retry_failed", action="store_true")
    return parser


@pytest.mark.parametrize(
    "options", ["--batch_size=3 --retry_failed", "--batch-size 3 --retry-failed", "--batch-size=3 --retry-failed"]
)
def test_hyphens_stand_for_underscores(parser, options):
    args = parser.parse_args(["a-file", *options.split()])
    assert (args.file, args.batch_size, args.retry_failed) == ("a-file", 3, True)


def test_what_is_refused_is_told_as_it_was_spelt(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["a-file", "--retry-fail"])
    said = "error: no option --retry-fail; perhaps --retry_failed is meant. See: cm-lightning x --help\n"
    assert capsys.readouterr().err == said


def test_values_keep_their_hyphens(parser):
    parser.add_argument("--name")
    assert parser.parse_args(["f", "--name=my-own-name"]).name == "my-own-name"


def test_sample_under_guidance_counts_its_evaluations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for dropout in (0.0, 0.1):
        m = ConsistencyTraining(UNet(1, 8, (1,), 1, (), num_classes=2, patch=4), (1, 8, 8), label_dropout=dropout)
        t = trainer(tmp_path, max_steps=1)
        t.fit(m, images((1, 8, 8), classes=2))
        t.save_checkpoint(f"{dropout}.ckpt")
    for options, evaluations in ((["--steps=3"], 3), (["--steps=3", "--guidance=1.5"], 6)):
        sample(["--ckpt_path=0.1.ckpt", "--num_samples=4", *options])
        assert f"evaluations of the network for each: {evaluations}\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="guidance needs a network that was trained with label_dropout"):
        sample(["--ckpt_path=0.0.ckpt", "--num_samples=4", "--guidance=1.5"])
    with pytest.raises(ConfigError, match="--gamma is an option of flow maps, but this is a Consis"):
        sample(["--ckpt_path=0.1.ckpt", "--num_samples=4", "--gamma=0.5"])


def test_gamma_is_the_share_of_the_noise_that_a_flow_map_draws_anew(tmp_path, monkeypatch, capsys):
    network = ResidualMLP(2, 16, 1, noise_embedding=TwoTimesEmbedding(16))
    torch.nn.init.normal_(network.head.weight)
    monkeypatch.setattr("cm_lightning.modules.loading.load_module", lambda *_: MeanFlow(network, (2,)))
    drawn = []
    for options in ([], ["--gamma=0"], ["--gamma=1"]):
        sample(["--ckpt_path=x", "--steps=2", "--num_samples=3", f"--output={tmp_path}/x.npz", *options])
        drawn.append(np.load(tmp_path / "x.npz")["images"])
        assert "evaluations of the network for each: 2\n" in capsys.readouterr().out
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).all()
