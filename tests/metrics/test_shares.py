import pytest
import torch

from cm_lightning.metrics.scores import Scores
from cm_lightning.metrics.shares import PixelShares


def shares(*batches):
    return Scores([PixelShares()])([(batch, None) for batch in batches])


@pytest.mark.parametrize(
    ("value", "mid_grey", "black"),
    [(0.0, 1, 0), (0.499, 1, 0), (-0.499, 1, 0), (0.5, 0, 0), (-0.5, 0, 0), (-0.98, 0, 0), (-0.981, 0, 1), (-1.0, 0, 1),
     (-3.0, 0, 1), (1.0, 0, 0), (2.0, 0, 0)],
)  # fmt: skip
def test_a_pixel_is_mid_grey_or_black_by_its_value(value, mid_grey, black):
    assert shares(torch.full((2, 1, 3, 3), value)) == {"mid_grey": mid_grey, "black": black}


def test_they_are_shares_of_all_pixels_of_all_batches():
    first, second = torch.full((3, 1, 2, 2), -1.0), torch.tensor([[0.0, 0.1], [-1.0, 1.0]]).expand(1, 1, 2, 2)
    assert shares(first, second) == pytest.approx({"mid_grey": 2 / 16, "black": 13 / 16})
    assert shares(second.bfloat16()) == {"mid_grey": 0.5, "black": 0.25}


def test_earlier_samples_are_forgotten():
    scores = Scores([PixelShares()])
    scores([(torch.zeros(1, 1, 2, 2), None)])
    assert scores([(-torch.ones(1, 1, 2, 2), None)]) == {"mid_grey": 0, "black": 1}


def test_colour_images_have_none():
    assert shares(torch.zeros(2, 3, 4, 4)) == {}
    assert shares() == {}
