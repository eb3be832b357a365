"""Editing in closed form: what is known is kept exactly, and noise is added and removed as it should be."""

import pytest
import torch

from cm_lightning.core.editing import BRIGHTNESS, Brightness, PatchMeans, Pixels, brightness, edit, redraw, slerp
from cm_lightning.core.oracle import GaussianOracle, MixtureOracle
from cm_lightning.core.sampler import fresh_noise, spread_sigmas
from cm_lightning.errors import ConfigError

SHAPE = (3, 8, 8)


def picture(n=1):
    """Colours up to black and white."""
    return (2 * torch.randn(n, *SHAPE)).clamp(-1, 1)


def grey_blocks(x, p):
    return x.unflatten(-1, (-1, p)).unflatten(-3, (-1, p)).mean((-3, -1))


MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:5, 3:] = True
IMAGE = picture()
#: The known part, and what it must be in any image.
KINDS = {
    "pixels": (Pixels(IMAGE, MASK), lambda x: x[..., ~MASK]),
    "brightness": (Brightness(brightness(IMAGE)), brightness),
    "patch means": (PatchMeans(grey_blocks(IMAGE, 4), 4), lambda x: grey_blocks(x, 4)),
}
EACH = pytest.mark.parametrize(("known", "part"), KINDS.values(), ids=KINDS)


@EACH
def test_what_is_known_is_kept_exactly_and_within_the_range(known, part):
    drawn = edit(lambda x, t: 30 * torch.randn(5, *SHAPE), known, [80.0, 2.0, 0.5], fresh_noise())
    assert drawn.shape == (5, *SHAPE)
    assert drawn.abs().max() <= 1 + 1e-6
    tolerance = 0 if isinstance(known, Pixels) else 1e-6
    torch.testing.assert_close(part(drawn), part(IMAGE).expand_as(part(drawn)), rtol=0, atol=tolerance)
    assert (drawn.std(0) > 0.1).float().mean() > 0.05  # the rest is drawn


@EACH
def test_putting_back_is_an_orthogonal_projection(known, part):
    x = 3 * torch.randn(4, *SHAPE)
    once = known.put_back(x)
    torch.testing.assert_close(part(once), part(IMAGE).expand_as(part(once)))
    torch.testing.assert_close(known.put_back(once), once)
    # the nearest image of that part: the way there is orthogonal to every way within it
    within = once - known.put_back(torch.randn(4, *SHAPE))
    inner = ((x - once) * within).flatten(1).sum(1)
    torch.testing.assert_close(inner, torch.zeros(4), rtol=0, atol=2e-3)


@EACH
def test_the_start_has_the_known_part(known, part):
    torch.testing.assert_close(part(known.start), part(IMAGE))


def test_an_image_in_range_that_has_the_known_part_stays():
    x = KINDS["patch means"][0].in_range(picture())
    torch.testing.assert_close(KINDS["patch means"][0].in_range(x), x)


def test_the_brightness_is_the_first_row_of_the_paper_s_matrix():
    weights = torch.tensor(BRIGHTNESS, dtype=torch.float64)
    expected = torch.tensor([0.447113439, 0.878071551, 0.170528376], dtype=torch.float64)
    torch.testing.assert_close(weights / weights.norm(), expected, rtol=0, atol=1e-8)
    grey = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(brightness(grey.expand(-1, 3, -1, -1)), grey)


def test_a_patch_has_more_than_one_pixel():
    with pytest.raises(ConfigError, match="p must be a whole number of at least 2, got 1"):
        PatchMeans(torch.zeros(1, 1, 4, 4), 1)


def test_inpainting_finds_what_belongs_to_the_known_pixel():
    two = MixtureOracle(torch.tensor([[-0.6, -0.6], [0.6, 0.6]]), torch.full((2,), 0.05), steps=12)

    def f(x, t):
        return two.consistency(x.flatten(1), t).reshape(x.shape)

    known = Pixels(torch.full((200, 1, 1, 2), 0.6), torch.tensor([False, True]))
    drawn = edit(f, known, spread_sigmas(8), fresh_noise())
    assert (drawn[..., 0] == torch.tensor(0.6)).all()
    assert ((drawn[..., 1] - 0.6).abs() < 0.25).float().mean() > 0.62  # without it, half of them


@pytest.mark.parametrize(("sigma", "a", "b"), [(1.0, 0.4472135955, 0.4472135955), (5.38, 0.0925380252, 0.4978545756)])
def test_redrawing_gaussian_data_in_closed_form(sigma, a, b):
    oracle, y = GaussianOracle(0.5, sigma_min=0.0), torch.randn(3, 4, dtype=torch.float64)
    for z in (-1.0, 0.0, 2.0):
        drawn = redraw(oracle.consistency, y, [sigma], fresh_noise(0.0, lambda x, z=z: torch.full_like(x, z)))
        torch.testing.assert_close(drawn, a * y + b * z, rtol=0, atol=1e-9)


def test_every_level_is_one_evaluation_and_noise_reaches_the_next_level():
    seen = []

    def f(x, t):
        seen.append((float(x[0, 0]), float(t[0])))
        return torch.zeros_like(x)

    redraw(f, torch.full((2, 1), 0.25, dtype=torch.float64), [5.38, 5.23], fresh_noise(0.002, torch.ones_like))
    assert seen == [(pytest.approx(0.25 + 5.379999628), 5.38), (pytest.approx(5.229999617591), 5.23)]


@pytest.mark.parametrize(
    ("a", "b", "share", "expected"),
    [
        ([1.0, 0.0], [0.6, 0.8], 0.25, [0.97324899, 0.22975292]),
        ([1.0, 0.0], [0.6, 0.8], 0.0, [1.0, 0.0]),
        ([1.0, 0.0], [0.6, 0.8], 1.0, [0.6, 0.8]),
        ([2.0, 0.0], [2.0, 0.0], 0.3, [2.0, 0.0]),
        ([1.0, 0.0], [3.0, 0.0], 0.5, [2.0, 0.0]),  # of one direction: the line
        ([0.0, 1.0], [1.0, 0.0], 0.5, [0.5**0.5, 0.5**0.5]),
    ],
)
def test_slerp(a, b, share, expected):
    found = slerp(torch.tensor([a]), torch.tensor([b]), torch.tensor([share]))
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_slerp_takes_each_row_by_its_own_share_and_keeps_the_type():
    a, b = torch.randn(3, *SHAPE, dtype=torch.float16), torch.randn(3, *SHAPE, dtype=torch.float16)
    found = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found[::2], torch.stack([a[0], b[2]]))
    assert found[1].float().norm() == pytest.approx(float(a[1].float().norm()), rel=0.1)  # a mean would have 0.7 of it
    with pytest.raises(ConfigError, match="slerp: a vector is 0"):
        slerp(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64, torch.bfloat16])
def test_a_mask_of_numbers_is_refused(dtype):
    with pytest.raises(ConfigError, match=r"the mask must be boolean, .* got torch\..*: give mask > 0"):
        Pixels(IMAGE, MASK.to(dtype))
