"""Sheets are those of torchvision, which they do not import."""

import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid, save_image

from cm_lightning.images import sheet, to_pixels, write_png


@pytest.mark.parametrize("n", [1, 2, 7, 10])
@pytest.mark.parametrize("columns", [1, 3, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet(tmp_path, n, columns, channels):
    images = torch.rand(n, channels, 5, 4) * 2 - 1
    expected = make_grid(to_pixels(images), nrow=columns, padding=2, pad_value=128)
    assert torch.equal(sheet(images, columns), expected)
    write_png(tmp_path / "own.png", to_pixels(images)[0])
    save_image(to_pixels(images)[0] / 255, tmp_path / "theirs.png")
    own, theirs = (Image.open(tmp_path / name) for name in ("own.png", "theirs.png"))
    assert (own.mode, own.tobytes()) == (theirs.mode, theirs.tobytes())
