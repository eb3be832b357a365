"""Latent consistency in real processes: on two ranks, and killed and resumed."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from cm_lightning.checkpoint import read_checkpoint
from tests.processes import fork

SCRIPT = str(Path(__file__).with_name("latent_ranks.py"))


def last(folder):
    (path,) = folder.rglob("last.ckpt")
    return read_checkpoint(path)


@pytest.mark.parametrize(("student", "copy"), [("whole", "target"), ("lora", "target"), ("stages", "before")])
def test_two_ranks_stay_alike(student, copy, tmp_path):
    fork(SCRIPT, "2", str(tmp_path), student, cwd=tmp_path)
    end = last(tmp_path)
    assert end["global_step"] == 6
    assert len(end["random_states"]) == 2
    assert {name.split(".")[0] for name in end["state_dict"]} - {"critic"} == {"backbone", copy}


def test_a_killed_adapter_s_run_resumes_to_the_bit_equal_weights(tmp_path):
    for folder in ("whole", "killed", "resumed"):
        (tmp_path / folder).mkdir()
    fork(SCRIPT, "1", str(tmp_path / "whole"), "lora", cwd=tmp_path)
    assert fork(SCRIPT, "1", str(tmp_path / "killed"), "lora", "3", cwd=tmp_path, check=False).returncode == -9
    (path,) = (tmp_path / "killed").rglob("last.ckpt")
    assert read_checkpoint(path)["global_step"] == 2
    fork(SCRIPT, "1", str(tmp_path / "resumed"), "lora", str(path), cwd=tmp_path)
    whole, resumed = (last(tmp_path / folder) for folder in ("whole", "resumed"))
    assert resumed["global_step"] == 6
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)
    averages = [[s["average"] for s in c["callbacks"].values() if "average" in s] for c in (whole, resumed)]
    torch.testing.assert_close(averages[1], averages[0], rtol=0, atol=0)
