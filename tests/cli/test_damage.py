"""Damaged checkpoints, and those whose parts are wrong or missing."""

import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm_lightning.callbacks.ema import EMA
from cm_lightning.checkpoint import read_checkpoint
from cm_lightning.cli import main
from cm_lightning.digest import ANYWAY, load_tensors, require_undamaged, save_tensors
from cm_lightning.errors import CheckpointError, NonFiniteLossError
from cm_lightning.interop.weights import read_tensors
from cm_lightning.parts import FORMAT, FORMAT_KEY, begin_anew, require_parts
from cm_lightning.states import are_finite
from tests.helpers import module, points, trainer
from tests.processes import CONF

TOY = f"--config={CONF}/toy.yaml"


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])


TENSORS = {
    "a": torch.arange(300.0),
    "b": torch.ones(4, 5, dtype=torch.bfloat16),
    "c": torch.tensor(3),
    "empty": torch.empty(0, 3),
    "flag": torch.tensor([True, False]),
}


def flip(path, at, bit=3):
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1 << bit
    Path(path).write_bytes(data)


def place_of(path, part):
    """The place of a tensor's bytes in an archive."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(part))
        return Path(path).read_bytes().index(archive.read(name))


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("within", [0, 4, 600, 1199])
def test_a_flipped_bit_in_a_tensor_of_a_checkpoint_is_a_line(within, bit, monkeypatch):
    torch.save({"state_dict": TENSORS}, "x.ckpt")
    assert read_checkpoint("x.ckpt")["state_dict"].keys() == TENSORS.keys()
    flip("x.ckpt", place_of("x.ckpt", "data/0") + within, bit)
    for read in (read_checkpoint, read_tensors):
        with pytest.raises(CheckpointError) as caught:
            read("x.ckpt")
        assert str(caught.value) == (
            "x.ckpt is damaged: the checksum of x/data/0 is wrong: use another copy or checkpoint "
            "(CM_LIGHTNING_READ_DAMAGED=1 reads it anyway)"
        )
    monkeypatch.setenv(ANYWAY, "1")
    assert read_checkpoint("x.ckpt")["state_dict"].keys() == TENSORS.keys()


@pytest.mark.parametrize("within", [1, 3, 7, 300, 900, 1199])
def test_a_flipped_bit_in_a_file_of_safetensors_is_a_line(within, monkeypatch):
    save_tensors(TENSORS, "x.safetensors", {"format": "pt"})
    for read in (load_tensors, load_file):
        torch.testing.assert_close(read("x.safetensors"), TENSORS, rtol=0, atol=0)
    size = Path("x.safetensors").stat().st_size
    flip("x.safetensors", size - within)
    for read in (load_tensors, read_tensors):
        with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged: the checksum of a tensor is wrong"):
            read("x.safetensors")
    monkeypatch.setenv(ANYWAY, "1")
    assert load_tensors("x.safetensors").keys() == TENSORS.keys()


def test_files_without_a_digest_are_read():
    save_file(TENSORS, "x.safetensors")
    assert load_tensors("x.safetensors").keys() == TENSORS.keys()
    torch.save(TENSORS, "old.pt", _use_new_zipfile_serialization=False)
    require_undamaged("old.pt")
    Path("empty.ckpt").touch()
    require_undamaged("empty.ckpt")


def test_a_checkpoint_of_a_later_version_is_refused_and_one_without_a_number_is_read():
    torch.save({"state_dict": {}, FORMAT_KEY: FORMAT + 1}, "x.ckpt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("x.ckpt")
    assert str(caught.value) == (
        f"x.ckpt has format {FORMAT + 1}, and this version of cm_lightning reads up to {FORMAT}: upgrade it"
    )
    for number in ({}, {FORMAT_KEY: FORMAT}):
        torch.save({"state_dict": {}, **number}, "x.ckpt")
        assert read_checkpoint("x.ckpt")["state_dict"] == {}


COUNTS = {"ready": 6, "started": 6, "processed": 6, "completed": 5}


def whole():
    progress = {"total": dict(COUNTS), "current": dict(COUNTS), "is_last_batch": False}
    loop = {"epoch_loop.batch_progress": progress, "epoch_loop.state_dict": {"_batches_that_stepped": 5}}
    return {
        "global_step": 6, "epoch": 1, "loops": {"fit_loop": loop}, "lr_schedulers": [{"last_epoch": 6}],
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}], "trained_steps": 6,
        "callbacks": {"EMA": {"average": {}}}, "random_states": [{"cpu": torch.get_rng_state()}],
    }  # fmt: skip


PATH = Path("runs/x/last.ckpt")
WRONG = [
    *((name, value) for name in ("global_step", "epoch", "trained_steps") for value in (None, -1, 1.5, "6", True, [6])),
    *(("loops", value) for value in (None, [], {}, {"fit_loop": {}}, {"fit_loop": []}, {"fit_loop": None})),
    *(("optimizer_states", value) for value in (None, {}, [None], [{}], [{"state": [], "param_groups": []}],
                                                [{"state": {}, "param_groups": [3]}])),
    *(("lr_schedulers", value) for value in (None, {}, [None], "x")),
    *(("callbacks", value) for value in (None, [], {"EMA": None}, {"EMA": [1]})),
    *(("random_states", value) for value in ({}, [None], [{}], [{"cpu": [1]}], torch.ones(2))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_part_that_is_wrong_is_named(name, value):
    with pytest.raises(CheckpointError) as caught:
        require_parts({**whole(), name: value}, PATH)
    assert str(caught.value) == (
        f"{PATH} cannot be resumed: its {name} is not what training writes: use another, or --model.start_from {PATH}"
    )


@pytest.mark.parametrize("part", ["total", "current", "is_last_batch"])
def test_counts_of_batches_are_needed(part):
    checkpoint = whole()
    del checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"][part]
    with pytest.raises(CheckpointError, match="its loops is not what"):
        require_parts(checkpoint, PATH)


@pytest.mark.parametrize("name", ["global_step", "epoch", "loops", "optimizer_states", "lr_schedulers"])
def test_a_part_that_is_needed_and_missing_is_named(name):
    checkpoint = whole()
    del checkpoint[name]
    with pytest.raises(CheckpointError, match=f"it has no {name}: use another, or --model.start_from"):
        require_parts(checkpoint, PATH)


@pytest.mark.parametrize(
    ("without", "changed", "ranks", "said"),
    [
        ([], {}, 1, []),
        (["trained_steps"], {}, 1, []),
        (["random_states"], {}, 1, ["noise and dropout"]),
        ([], {"random_states": None}, 1, ["noise and dropout"]),
        (["callbacks"], {}, 1, ["averages and totals"]),
        ([], {"optimizer_states": []}, 1, ["the optimizer's moments"]),
        ([], {}, 2, ["noise and dropout (of 1 rank(s) then, 2 now)"]),
        ([], {"random_states": whole()["random_states"] * 2}, 1, ["noise and dropout (of 2 rank(s) then, 1 now)"]),
    ],
)
def test_what_begins_anew_is_said(without, changed, ranks, said):
    checkpoint = {name: value for name, value in {**whole(), **changed}.items() if name not in without}
    assert begin_anew(checkpoint, ranks) == said


def test_a_resumed_run_says_what_its_checkpoint_does_not_have(log):
    main(["fit", TOY, "--trainer.max_steps=3"])
    path = Path("runs/toy/version_0/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(path)
    assert checkpoint[FORMAT_KEY] == FORMAT
    require_parts(checkpoint, path)
    assert begin_anew(checkpoint, 1) == []
    del checkpoint["random_states"]
    checkpoint["callbacks"] = {key: state for key, state in checkpoint["callbacks"].items() if "average" not in state}
    torch.save(checkpoint, path)
    main(["fit", TOY, "--ckpt_path=last", "--trainer.max_steps=4"])
    assert f"{path} does not hold all of a run, so these are reset: noise and dropout" in log
    assert "EMA: the checkpoint does not hold an average of backbone: it starts again from the weights" in log


def test_an_average_that_is_not_finite_is_not_saved(tmp_path):
    ema = EMA(0.9)
    t = trainer(tmp_path, callbacks=[ema], max_steps=2)
    t.fit(module(), points())
    t.save_checkpoint("x.ckpt")
    next(iter(ema.average.values())).view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteLossError) as caught:
        t.save_checkpoint("y.ckpt")
    assert str(caught.value) == (
        "the average of backbone is not finite at step 2, though the weights are: no checkpoint of it is written: "
        "resume from an earlier one by --ckpt_path"
    )
    assert not Path("y.ckpt").exists()


@pytest.mark.parametrize(
    ("tensors", "finite"),
    [
        ([], True),
        ([torch.tensor([1, 2])], True),
        ([torch.full((100,), 60000.0, dtype=torch.float16)], True),
        ([torch.ones(2), torch.tensor([1.0, float("nan")])], False),
        ([torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float16), torch.ones(2)], True),
        ([torch.ones(2), torch.tensor([float("inf")], dtype=torch.float64)], False),
        ([torch.ones(2, dtype=torch.bfloat16), torch.tensor(float("-inf"))], False),
    ],
)
def test_tensors_are_finite(tensors, finite):
    assert are_finite(tensors) == finite
