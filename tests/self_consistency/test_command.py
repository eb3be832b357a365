import math

import pytest
import torch
from PIL import Image

from cm_lightning.commands.self_consistency import main
from cm_lightning.core.oracle import GaussianOracle
from cm_lightning.core.solver import euler_step
from cm_lightning.errors import ConfigError
from cm_lightning.self_consistency import flow
from cm_lightning.self_consistency.claim import Claim, table
from cm_lightning.self_consistency.comparison import compare
from cm_lightning.self_consistency.plane import RADIUS, mixture, total_variance
from cm_lightning.self_consistency.students import ExactTeacher

TINY = ["--trajectories", "16", "--resolution", "5"]


def test_every_claim_on_the_exact_function_holds(tmp_path, capsys):
    main([*TINY, "--steps", "0", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("| pass |") == 21
    assert "FAIL" not in printed
    assert Image.open(tmp_path / "trajectories.png").width > 500
    assert {path.name for path in tmp_path.iterdir()} == {"trajectories.png", "steepness.png"}


def test_a_claim_that_fails_is_marked_and_ends_the_command_with_1(tmp_path, capsys, monkeypatch):
    for part in ("right_side.right_side", "flow.flow", "randomness.randomness"):  # that hold, as above
        monkeypatch.setattr(f"cm_lightning.self_consistency.{part}_claims", lambda *_: [])
    for picture in ("trajectories", "steepness"):  # that are drawn above
        monkeypatch.setattr(f"cm_lightning.self_consistency.theory_figures.draw_{picture}", lambda *_: None)
    with pytest.raises(SystemExit, match=r"4 of 6 claims failed"):
        main([*TINY, "--steps", "6", "--output", str(tmp_path)])
    assert capsys.readouterr().out.count("| FAIL |") == 4  # the error, and its fall, of two networks of six steps
    assert {path.name for path in tmp_path.iterdir()} == {"regions.png", "errors.png"}


@pytest.mark.parametrize("wrong", [["--trajectories", "1"], ["--steps", "5"], ["--resolution", "1"]])
def test_options_out_of_range_are_named(wrong, capsys):
    with pytest.raises((ConfigError, SystemExit)) as caught:
        main(wrong)
    assert wrong[0] in (capsys.readouterr().err or str(caught.value))


def test_a_denoiser_is_not_a_consistency_function():
    """What stochastic paths would teach is not constant along the ODE's trajectories."""
    oracle = GaussianOracle(0.5)
    oracle.consistency = oracle.denoiser
    x = torch.randn(8, 2, dtype=torch.float64)
    claims = flow.claims_of("Gaussian", oracle, x, torch.Generator().manual_seed(0))
    assert [claim.holds for claim in claims] == [False, True, True, False]


def test_not_a_number_is_not_a_pass():
    assert not Claim("", math.nan, 1).holds
    assert "FAIL" in table([Claim("", 2, 1)]).markdown()


def test_the_data_are_as_the_scalings_expect():
    oracle = mixture()
    mean, variance = total_variance(oracle)
    x = oracle.sample(50_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.01)
    assert x.var(0).sum().item() == pytest.approx(variance, rel=0.02)
    assert (variance / 2) ** 0.5 == pytest.approx(0.5, abs=0.05)
    assert oracle.means.norm(dim=1).max().item() == pytest.approx(RADIUS)


def test_students_pass_through_all_numbers_of_levels():
    comparison = compare("CT", steps=12, n=16, seed=0)
    assert comparison.levels == [3, 5, 9, 17, 33, 65]
    assert comparison.ideal[0] > 3 * comparison.ideal[-1]


def test_the_teacher_is_exact():
    oracle = mixture(dtype=torch.float32)
    teacher, x, t = ExactTeacher(oracle), torch.randn(8, 2), torch.full((8,), 2.0)
    step = euler_step(teacher.denoiser, x, t, t / 2)
    torch.testing.assert_close(step, (x + oracle.denoiser(x, t)) / 2)
