import subprocess

import pytest

from tests.processes import ROOT

SCRIPTS = sorted(path for path in ROOT.rglob("*.slurm") if "venv" not in str(path))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_passes_its_arguments_on(script, tmp_path):
    """Replace srun, wandb and python by scripts that print their arguments."""
    for name in ("srun", "wandb"):
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@" tasks=${{SLURM_NTASKS:-none}}\n')
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "16"}
    done = subprocess.run(["bash", script, "THIS"], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = {
        "fit.slurm": "srun python -m cm_lightning fit THIS --trainer.strategy ddp --trainer.devices 8 "
        "--trainer.num_nodes 2 tasks=16",
        "agent.slurm": "wandb agent --count 1 THIS tasks=none",
    }
    assert done.stdout.strip() == expected[script.name]
