"""The script of experiments/plane, against what is known of its parts."""

import pytest
import torch
from PIL import Image

from cm_lightning.backbones.embedding import TwoTimesEmbedding
from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.core.ode_sampler import Euler
from cm_lightning.data.toy import draw
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.mean_flow import MeanFlow
from cm_lightning.modules.moment_matching import InductiveMomentMatching
from tests.helpers import script
from tests.processes import ROOT


@pytest.fixture(scope="module")
def figure():
    return script(ROOT / "experiments/plane/figure.py")


def two_times(kind):
    return kind(ResidualMLP(width=8, depth=1, noise_embedding=TwoTimesEmbedding(8)), (2,))


def diffusion():
    return DiffusionModule(ResidualMLP(width=8, depth=1), (2,), sampler=Euler())


def test_the_boxes_are_those_of_the_data(figure):
    points, _ = draw("checkerboard", 4000, torch.Generator().manual_seed(0))
    board = figure.checkerboard()
    inside = ((points[:, None] - board.centres).abs() <= board.half + 1e-6).all(-1)
    assert inside.any(1).all()
    torch.testing.assert_close(inside.float().mean(0), torch.full((8,), 1 / 8), rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", ["checkerboard", "gaussians", "moons"])
def test_an_oracle_has_the_distribution_of_the_data(figure, shape):
    points, _ = draw(shape, 20_000, torch.Generator().manual_seed(0))
    oracle = figure.ORACLES[shape]()
    far = torch.full((1,), 1e3, dtype=torch.float64)
    mean = oracle.denoiser(torch.zeros(1, 2, dtype=torch.float64), far)[0]
    torch.testing.assert_close(mean, points.double().mean(0), rtol=0, atol=0.02)
    # E[x0 | x] of points at distance sigma^2 moves by the covariance of the data
    moved = [oracle.denoiser(far[0] ** 2 * axis[None], far)[0] - mean for axis in 1e-2 * torch.eye(2).double()]
    torch.testing.assert_close(100 * torch.stack(moved), points.double().T.cov(), rtol=0, atol=0.01)


@pytest.mark.parametrize(("shape", "names"), [("checkerboard", "square"), ("gaussians", "ring"), ("moons", "")])
def test_what_lacks_the_details_has_the_moments_and_another_distribution(figure, shape, names):
    points, _ = draw(shape, 5000, torch.Generator().manual_seed(0))
    for name, others in figure.blurred(shape, points, torch.Generator().manual_seed(1)).items():
        torch.testing.assert_close(others.mean(0), points.mean(0), rtol=0, atol=0.03)
        torch.testing.assert_close(others.var(0), points.var(0), rtol=0, atol=0.02)
        assert "Gaussian" in name or names in name
    found = [float(part.split(": ")[1]) for part in figure.references(shape, 1000).split("; ")]
    assert len(found) == 1 + bool(names)
    assert min(found) > 0.002  # the distance of fresh points, 0.001, is that of so few


def test_the_moons_are_as_exact_as_with_ten_times_the_gaussians(figure):
    generator, sigma = torch.Generator().manual_seed(0), torch.full((200,), 0.02, dtype=torch.float64)
    x = draw("moons", 200, generator)[0].double() + 0.02 * torch.randn(200, 2, generator=generator)
    coarse, fine = (figure.moons(each=each).denoiser(x, sigma) for each in (200, 2000))
    torch.testing.assert_close(coarse, fine, rtol=0, atol=1e-3)


def test_a_trajectory_starts_at_the_level_of_the_module(figure):
    assert figure.start_level(diffusion()) == 80
    assert figure.start_level(two_times(MeanFlow)) == figure.FAR
    assert figure.start_level(two_times(InductiveMomentMatching)) == pytest.approx(0.994 / 0.006)


def test_the_error_is_the_root_mean_square_distance_from_the_exact_ends(figure):
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    exact, module = figure.Exact(noise, figure.checkerboard(steps=32)), diffusion()
    module.generate = lambda z, labels, sigmas, generator: exact.ends(80) + torch.tensor([3.0, 4.0])
    assert exact.error(module) == pytest.approx(5)


def test_a_cell_has_mean_and_standard_deviation(figure):
    assert [figure.cell(values, 2) for values in ([], [0.5], [1.0, 2.0, 3.0])] == ["", "0.50", "2.00 ± 1.00"]


def test_a_picture_has_a_row_for_each_method_and_gaps(figure, tmp_path):
    points = draw("checkerboard", 100, torch.Generator().manual_seed(0))[0]
    for number in (1, 3):
        figure.picture([("one", [points] * 4 + [None])] * number, "checkerboard", tmp_path / f"{number}.png")
    one, three = (Image.open(tmp_path / f"{number}.png").size for number in (1, 3))
    assert (one[0], 3 * one[1]) == pytest.approx(three, abs=3)
