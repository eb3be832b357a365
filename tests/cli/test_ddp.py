"""Several ranks, as real processes over gloo on the loopback address."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cm_lightning.checkpoint import read_checkpoint
from tests.cli.test_processes import CONF, ROOT, start


@pytest.fixture(scope="module")
def one_and_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks.py")
    logs = [start(str(script), str(n), f"{n}.ckpt", cwd=folder) for n in (1, 2)]
    return folder, logs


@pytest.mark.xdist_group("ranks")
def test_two_ranks_train_what_one_rank_trains_with_the_whole_batch(one_and_two_ranks):
    folder, _ = one_and_two_ranks
    one, two = (read_checkpoint(folder / f"{n}.ckpt") for n in (1, 2))
    assert one["global_step"] == two["global_step"] == 3
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-4, atol=1e-6)
    averages = [[s["average"] for s in c["callbacks"].values() if "average" in s] for c in (one, two)]
    assert [len(found) for found in averages] == [1, 1]
    torch.testing.assert_close(averages[1], averages[0], rtol=1e-4, atol=1e-6)
    assert not any(name.startswith("teacher") for name in two["state_dict"])


@pytest.mark.xdist_group("ranks")
def test_two_ranks_measure_what_one_measures(one_and_two_ranks):
    folder, _ = one_and_two_ranks
    one, two = (torch.load(folder / f"{n}.ckpt.scores") for n in (1, 2))
    names = [name for name in one if "_nfe1" in name or "_floor" in name]
    assert len(names) == 6
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    statistics = [next(folder.glob(f"cache{n}/*.safetensors")) for n in (1, 2)]
    assert statistics[0].name == statistics[1].name


@pytest.mark.xdist_group("ranks")
def test_the_log_says_what_a_rank_does(one_and_two_ranks):
    _, (one, two) = one_and_two_ranks
    assert "a step takes" not in one.stdout + one.stderr
    expected = "a step takes 16 images: 2 rank(s) x 1 batch(es) of 8; the learning rate stays as given, 0.1"
    assert (two.stdout + two.stderr).count(expected) == 1


def test_two_nodes_by_torchrun(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.max_steps=6"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}",
             "--master-addr=127.0.0.1", f"--master-port={port}",
             "-m", "cm_lightning", "fit", f"--config={CONF}/toy.yaml", *ddp],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in (0, 1)
    ]  # fmt: skip
    outputs = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)[-3000:]
    (version,) = (tmp_path / "runs/toy").iterdir()  # one run, not one a node
    assert read_checkpoint(version / "checkpoints/last.ckpt")["global_step"] == 6
    assert len(read_checkpoint(version / "checkpoints/last.ckpt")["random_states"]) == 2
    assert yaml.safe_load((version / "config.yaml").read_text())["trainer"]["num_nodes"] == 2


def test_the_command_line_trains_on_two_ranks_and_notes_its_run(tmp_path):
    note = tmp_path / "run.json"
    fit = ["-m", "cm_lightning", "fit", f"--config={CONF}/toy.yaml", "--trainer.strategy=ddp", "--trainer.devices=2"]
    start(*fit, cwd=tmp_path, env={"CM_LIGHTNING_RUN_FILE": str(note)})
    assert json.loads(note.read_text()) == {"directory": "runs/toy/version_0", "finished": True}
    assert read_checkpoint(tmp_path / "runs/toy/version_0/checkpoints/last.ckpt")["global_step"] == 12
