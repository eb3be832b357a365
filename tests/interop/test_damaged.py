"""No file, however damaged or malicious, runs code, ends in a traceback, or gives a partial network."""

import json
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.checkpoint import CONFIG_KEY, read_checkpoint
from cm_lightning.errors import CheckpointError
from cm_lightning.interop.foreign import read_foreign
from cm_lightning.interop.pickles import read_pickle
from cm_lightning.interop.weights import read_tensors
from cm_lightning.modules.loading import load_module
from tests.interop.edm_reference import EDMNet
from tests.interop.snapshot import snapshot


def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.BatchNorm1d(2, track_running_stats=False)})


def write(path, kind):
    state = network().state_dict()
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "pkl":
        path.write_bytes(snapshot(network()))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    return path


KINDS = ["pt", "pth", "safetensors", "pkl"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_read(tmp_path, kind):
    read = read_tensors(write(tmp_path / f"x.{kind}", kind))
    torch.testing.assert_close(read, dict(network().state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_and_flipped_files_are_refused_or_whole(tmp_path, kind):
    whole = write(tmp_path / f"x.{kind}", kind).read_bytes()
    shapes = {name: tensor.shape for name, tensor in network().state_dict().items()}
    dice, refused = random.Random(0), 0
    for trial in range(150):
        data = bytearray(whole[: dice.randrange(len(whole))] if trial % 3 == 0 else whole)
        for _ in range(0 if trial % 3 == 0 else dice.choice([1, 1, 8])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        (tmp_path / f"y.{kind}").write_bytes(data)
        try:
            read = read_tensors(tmp_path / f"y.{kind}")
        except CheckpointError:
            refused += 1
            continue
        assert all(isinstance(t, torch.Tensor) and t.is_floating_point() for t in read.values())
        assert sum(t.numel() for t in read.values()) <= sum(s.numel() for s in shapes.values()) + 64
    assert refused >= 50  # all that were cut, at the least


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("suffix", KINDS)
def test_a_malicious_pickle_runs_nothing(tmp_path, suffix):
    witness = tmp_path / "was_run"
    evil = Evil(f"touch {witness}")
    pickled = tmp_path / f"a.{suffix}"
    pickled.write_bytes(pickle.dumps({"ema": evil, "state_dict": {"w": evil}}))
    saved = tmp_path / f"b.{suffix}"
    torch.save({"ema": evil, "state_dict": {"w": evil}}, saved)
    for path in (pickled, saved):
        readers = (read_tensors, read_checkpoint, load_module, lambda p: read_foreign(f"openai:{p}"))
        for read in (*readers, lambda p: read_foreign(f"edm:{p}")):
            with pytest.raises(CheckpointError) as caught:
                read(path)
            assert "\n" not in str(caught.value)
    assert not witness.exists()


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(S'touch was_run'\ntR.",
        b'cbuiltins\neval\n(S\'open("was_run","w")\'\ntR.',
        b"cbuiltins\ngetattr\n(cbuiltins\nobject\nS'__subclasses__'\ntR.",
        b"ctorch\nload\n(S'x'\ntR.",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"\x80\x04P0\n.",
    ],
)
def test_a_snapshot_may_name_only_what_a_network_is_made_of(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(text)
    with pytest.raises((CheckpointError, pickle.UnpicklingError)):
        read_pickle(tmp_path / "x.pkl")
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "x.pkl")
    assert not (tmp_path / "was_run").exists()


def test_things_that_are_no_weights_are_named(tmp_path):
    for content in ([1, 2], {}, {"w": 3}, {"w": torch.ones(2).long()}, {3: torch.ones(2)}, {"w": {"v": torch.ones(2)}}):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="is not a state dict"):
            read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "config",
    ["", "{", "[]", "{}", json.dumps({"_class_name": "UNet2DModel"}), json.dumps({"_class_name": "os.system"})],
)
def test_a_folder_of_diffusers_that_is_none(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError) as caught:
        read_foreign(f"diffusers:{tmp_path}")
    assert "\n" not in str(caught.value)


def checkpoint(path, config, **more):
    torch.save({"state_dict": {}, CONFIG_KEY: config, **more}, path)
    return str(path)


def test_a_checkpoint_cannot_have_the_command_line_run_or_trust_others(tmp_path):
    cli = {"class_path": "cm_lightning.cli._CLI", "init_args": {"args": ["fit", "--print_config"]}}
    with pytest.raises(CheckpointError, match=r"names cm_lightning\.cli\._CLI, which is not a class of that package"):
        load_module(checkpoint(tmp_path / "x.ckpt", cli))
    mlp = {"class_path": "cm_lightning.backbones.mlp.ResidualMLP", "init_args": {"dim": 2}}
    with pytest.raises(CheckpointError, match="which is not a module of this suite"):
        load_module(checkpoint(tmp_path / "x.ckpt", mlp))
    ran = tmp_path / "ran"
    evil = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(ran)]}}
    teacher = checkpoint(tmp_path / "t.ckpt", evil)
    arguments = {"backbone": mlp, "image_shape": [2], "teacher": teacher, "trust": ["subprocess"]}
    student = {"class_path": "cm_lightning.modules.distillation.ConsistencyDistillation", "init_args": arguments}
    state = {f"backbone.{name}": tensor for name, tensor in ResidualMLP(2).state_dict().items()}
    torch.save({"state_dict": state, CONFIG_KEY: student}, tmp_path / "s.ckpt")
    module = load_module(tmp_path / "s.ckpt")
    with pytest.raises(CheckpointError, match=r"names the class subprocess\.Popen"):
        _ = module.teacher
    assert not ran.exists()


@pytest.mark.parametrize("callbacks", [[], {"a": {"average": {}}}, {"a": {"average": 3, "attribute": "backbone"}}])
def test_odd_averages_are_no_averages(tmp_path, callbacks):
    mlp = {"class_path": "cm_lightning.backbones.mlp.ResidualMLP", "init_args": {"dim": 2}}
    config = {"class_path": "cm_lightning.modules.training.ConsistencyTraining",
              "init_args": {"backbone": mlp, "image_shape": [2]}}  # fmt: skip
    state = {f"backbone.{name}": tensor for name, tensor in ResidualMLP(2).state_dict().items()}
    torch.save({"state_dict": state, CONFIG_KEY: config, "callbacks": callbacks}, tmp_path / "x.ckpt")
    assert load_module(tmp_path / "x.ckpt").sample(2).shape == (2, 2)
    with pytest.raises(CheckpointError, match="does not hold averaged weights of backbone: choose the raw ones"):
        load_module(tmp_path / "x.ckpt", "ema")


def test_a_small_file_does_not_ask_for_much_memory(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04Nr" + (2**31 - 2).to_bytes(4, "little") + b".")
    with pytest.raises(CheckpointError, match="does not hold a network under 'ema'"):
        read_tensors(tmp_path / "x.pkl")
    torch.save({"map_layer0.weight": torch.zeros(1, 1).expand(4, 10**7)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="is not a state dict"):
        read_tensors(tmp_path / "x.pt")


def test_every_missing_or_misshapen_tensor_of_edm_s_is_one_line(monkeypatch):
    torch.manual_seed(0)
    state = EDMNet("ddpmpp", 8, 8, (1, 1), 1, (4,)).state_dict()
    for name, tensor in state.items():
        for changed in ({n: v for n, v in state.items() if n != name}, {**state, name: tensor[:-1].clone()}):
            if "map_augment" in name or "resample_filter" in name:
                continue
            monkeypatch.setattr("cm_lightning.interop.foreign.read_tensors", lambda _, tensors=changed: tensors)
            with pytest.raises(CheckpointError) as caught:
                read_foreign("edm:x.pt")
            assert "\n" not in str(caught.value)
