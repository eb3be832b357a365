"""Several ranks, as real processes over gloo on the loopback address."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed import TCPStore

from cm_lightning.checkpoint import read_checkpoint
from tests.processes import CONF, fork, forked


@pytest.fixture(scope="module")
def one_and_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks.py")
    logs = [fork(str(script), str(n), f"{n}.ckpt", cwd=folder) for n in (1, 2)]
    return folder, logs


def test_two_ranks_train_what_one_rank_trains_with_the_whole_batch(one_and_two_ranks):
    folder, _ = one_and_two_ranks
    one, two = (read_checkpoint(folder / f"{n}.ckpt") for n in (1, 2))
    assert one["global_step"] == two["global_step"] == 3
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-4, atol=1e-6)
    averages = [[s["average"] for s in c["callbacks"].values() if "average" in s] for c in (one, two)]
    assert [len(found) for found in averages] == [1, 1]
    torch.testing.assert_close(averages[1], averages[0], rtol=1e-4, atol=1e-6)
    assert not any(name.startswith("teacher") for name in two["state_dict"])
    states = two["random_states"]
    assert [len(c["random_states"]) for c in (one, two)] == [1, 2]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])


def test_two_ranks_measure_what_one_measures(one_and_two_ranks):
    folder, _ = one_and_two_ranks
    one, two = (torch.load(folder / f"{n}.ckpt.scores") for n in (1, 2))
    names = [name for name in one if "_nfe1" in name or "_floor" in name]
    assert len(names) == 2 * (2 * 5 + 2)  # two classifiers, and the shares of pixels
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    statistics = [sorted(path.name for path in folder.glob(f"cache{n}/*.safetensors")) for n in (1, 2)]
    assert statistics[0] == statistics[1]
    assert len(statistics[0]) == 2


def test_the_log_says_what_a_rank_does(one_and_two_ranks):
    _, (one, two) = one_and_two_ranks
    assert "a step takes" not in one.stdout + one.stderr
    expected = "a step takes 16 images: 2 rank(s) x 1 batch(es) of 8; the learning rate stays as given, 0.1"
    assert (two.stdout + two.stderr).count(expected) == 1


def test_two_nodes_by_torchrun(tmp_path):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # where the nodes meet
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.max_steps=6"]
    node = [str(Path(__file__).with_name("node.py")), str(store.port), "fit", f"--config={CONF}/toy.yaml", *ddp]
    said = [tmp_path / f"node{number}.txt" for number in (0, 1)]
    nodes = [forked(*node, cwd=tmp_path, said=[file]) for file in said]
    for process in nodes:
        process.join()
    assert [process.exitcode for process in nodes] == [0, 0], "\n".join(file.read_text() for file in said)[-3000:]
    (version,) = (tmp_path / "runs/toy").iterdir()  # one run, not one a node
    assert read_checkpoint(version / "checkpoints/last.ckpt")["global_step"] == 6
    assert len(read_checkpoint(version / "checkpoints/last.ckpt")["random_states"]) == 2
    assert yaml.safe_load((version / "config.yaml").read_text())["trainer"]["num_nodes"] == 2
