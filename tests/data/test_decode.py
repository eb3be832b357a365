import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cm_lightning.data.decode import Decoder
from cm_lightning.data.layout import members
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.images import to_unit_range


@pytest.fixture
def photo(tmp_path):
    pixels = torch.randint(0, 256, (3, 37, 61), dtype=torch.uint8)
    path = tmp_path / "photo.png"
    v2.functional.to_pil_image(pixels).save(path)
    return path, pixels


def test_a_square_is_the_shorter_side_resized_and_the_centre_cropped(photo):
    path, pixels = photo
    for image, turned in ((pixels, 0), (pixels.rot90(1, (1, 2)), 90)):
        with Image.open(path) as file:
            file.rotate(turned, expand=True).save(path.with_name("turned.png"))
        wanted = v2.CenterCrop(16)(v2.Resize(16)(image))
        assert torch.equal(Decoder(16)(path.with_name("turned.png"), ""), to_unit_range(wanted))


@pytest.mark.parametrize("size", [(8, 24), (24, 8), (37, 61), (100, 3), (37, 60)])
def test_any_rectangle_is_covered(photo, size):
    path, pixels = photo
    image = Decoder(size)(path, "")
    assert image.shape == (3, *size)
    if size == (37, 60):  # nothing to resize
        assert torch.equal(image, to_unit_range(v2.functional.center_crop(pixels, list(size))))


def test_photos_are_turned_upright(photo):
    path, pixels = photo
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    with Image.open(path) as file:
        file.save(path, exif=exif)
    assert torch.equal(Decoder((61, 37))(path, ""), to_unit_range(pixels.rot90(-1, (1, 2))))


def test_what_is_not_an_image_is_named(photo):
    path, _ = photo
    path.write_bytes(path.read_bytes()[:60] + b"?" * 99)
    with pytest.raises(DataError, match="number 7 cannot be read as an image"):
        Decoder(8)(path, "number 7")
    with pytest.raises(ConfigError, match=r"data.size must be at least 1 pixel, got \(8, 0\)"):
        Decoder((8, 0))


def test_held_out_are_every_tenth_of_each_class_and_at_least_one():
    labels = torch.tensor([0, 1]).repeat(12)
    assert members("val", labels).tolist() == [18, 19]
    assert sorted([*members("train", labels).tolist(), 18, 19]) == list(range(24))
    assert members("val", labels[:3]).tolist() == [2]
    assert members("val", torch.zeros(7), every=3).tolist() == [2, 5]
