"""The files of samples, as the programs read them that evaluate samples."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from cm_lightning.commands.results import write_results
from cm_lightning.images import to_pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_the_arrays_that_evaluators_take(channels, tmp_path):
    images = 2 * torch.rand(5, channels, 6, 4) - 1
    write_results(tmp_path / "x.npz", images, torch.arange(5), 3)
    held = np.load(tmp_path / "x.npz")
    assert sorted(held.files) == ["arr_0", "images", "labels"]
    assert (held["arr_0"].dtype, held["arr_0"].shape) == (np.uint8, (5, 6, 4, 3))
    assert held["images"].shape == (5, 6, 4, channels)
    assert np.array_equal(held["arr_0"], np.broadcast_to(held["images"], (5, 6, 4, 3)))
    assert np.array_equal(held["images"], to_pixels(images).permute(0, 2, 3, 1).numpy())
    # OpenAI's evaluator streams the array out of the archive: its order must be that of C
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        content = io.BytesIO(archive.read("arr_0.npy"))
    assert np.lib.format.read_magic(content) == (1, 0)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(content)
    assert (shape, fortran, dtype) == ((5, 6, 4, 3), False, np.uint8)


def test_a_folder_has_a_file_in_colour_for_each_image(tmp_path):
    images = 2 * torch.rand(2, 1, 6, 4) - 1
    write_results(tmp_path, images, None, 3)
    for i in range(2):
        found = np.asarray(Image.open(tmp_path / f"00000{i}.png"))
        assert np.array_equal(found, to_pixels(images[i]).expand(3, -1, -1).permute(1, 2, 0).numpy())


def test_points_are_kept_as_they_are(tmp_path):
    write_results(tmp_path / "x.npz", points := torch.randn(3, 2), None, 3)
    held = np.load(tmp_path / "x.npz")
    assert sorted(held.files) == ["images", "labels"]
    assert np.array_equal(held["images"], points.numpy())
    assert held["labels"].shape == (0,)
