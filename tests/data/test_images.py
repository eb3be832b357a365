"""Image files of every kind: the result is that of the 8-bit version, or one line says what is wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from cm_lightning.commands.prompt import _read_image
from cm_lightning.data.decode import ENDINGS, Decoder, read_image
from cm_lightning.errors import ConfigError, DataError

GREY = (np.arange(64).reshape(8, 8) * 4 + 1).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY.T], -1)
ALPHA = np.where(np.arange(64).reshape(8, 8) % 2, 255, 0).astype(np.uint8)
ON_WHITE = np.where(ALPHA[..., None] > 0, RGB, 255).astype(np.uint8)


def twin(pixels):
    return torch.from_numpy(pixels).float().div(127.5).sub(1).reshape(8, 8, -1).permute(2, 0, 1)


def grey16(path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)


def packed(values):
    """Two values of 12 bits in three bytes, as in a TIFF; the remaining bytes of the file are not read."""
    a, b = values.reshape(-1, 2).T
    data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()
    return np.frombuffer(data + bytes(2 * values.size - len(data)), np.uint16).reshape(values.shape)


def tiff(path, values, tags):
    """A TIFF with 16 bits per value and tags that say otherwise."""
    Image.fromarray(values).save(path)
    data = bytearray(path.read_bytes())
    start = int.from_bytes(data[4:8], "little")
    for i in range(int.from_bytes(data[start : start + 2], "little")):
        entry = start + 2 + 12 * i
        tag = int.from_bytes(data[entry : entry + 2], "little")
        if tag in tags:
            data[entry + 8 : entry + 10] = tags[tag].to_bytes(2, "little")
    path.write_bytes(data)


KINDS = {
    "8.png": lambda path: Image.fromarray(GREY).save(path),
    "16.png": grey16,
    "16-low.png": lambda path: Image.fromarray(GREY.astype(np.uint16) * 256).save(path),
    "16.tif": grey16,
    "16-big.tiff": lambda path: Image.fromarray((GREY.astype(np.uint16) * 257).astype(">u2")).save(path),
    "12.tif": lambda path: tiff(path, packed(GREY.astype(np.uint16) * 16), {258: 12}),
    "white-is-0.tif": lambda path: tiff(path, 65535 - GREY.astype(np.uint16) * 257, {262: 0}),
    "32.tif": lambda path: Image.fromarray(GREY.astype(np.int32)).save(path),
    "32-of-16.tif": lambda path: Image.fromarray(GREY.astype(np.int32) * 257).save(path),
    "float.tif": lambda path: Image.fromarray((GREY / 255).astype(np.float32)).save(path),
    "float255.tif": lambda path: Image.fromarray(GREY.astype(np.float32)).save(path),
    "palette.png": lambda path: Image.fromarray(GREY).convert("P").save(path),
    "palette.gif": lambda path: Image.fromarray(GREY).save(path),
    "opaque.png": lambda path: Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (8, 8), 255))).save(path),
    "UPPER.PNG": lambda path: Image.fromarray(GREY).save(path),
    "frames.gif": lambda path: Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.new("L", (8, 8))]),
    "frames.png": lambda path: Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.new("L", (8, 8))]),
    "pages.tif": lambda path: Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.new("L", (8, 8))]),
    "plain.pgm": lambda path: Image.fromarray(GREY).save(path),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_grey_images_of_every_kind_equal_their_8_bit_twin(name, tmp_path):
    KINDS[name](tmp_path / name)
    found = Decoder(8, 1)(tmp_path / name, name)
    torch.testing.assert_close(found, twin(GREY), rtol=0, atol=1.01 / 127.5)
    assert torch.equal(Decoder(8, 3)(tmp_path / name, name), found.expand(3, -1, -1))
    assert (tmp_path / name).suffix.lower() in ENDINGS


def palette_with_transparency(path):
    image = Image.fromarray(np.where(ALPHA > 0, 1, 0).astype(np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 0, 9])
    image.save(path, transparency=0)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: Image.fromarray(RGB).save(path), RGB),
        (lambda path: Image.fromarray(np.dstack([RGB, ALPHA])).save(path), ON_WHITE),
        (lambda path: Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA))).save(path),
         np.where(ALPHA > 0, GREY, 255)[..., None].repeat(3, -1)),
        (palette_with_transparency, np.where(ALPHA[..., None] > 0, [0, 0, 9], 255)),
        (lambda path: Image.fromarray(RGB).save(path, transparency=tuple(RGB[0, 0].tolist())),
         np.where((RGB[0, 0] == RGB).all(-1, keepdims=True), 255, RGB)),
        (lambda path: Image.fromarray(GREY.astype(np.uint16) * 257).save(path, transparency=int(GREY[0, 0]) * 257),
         np.where(GREY[0, 0] == GREY, 255, GREY)[..., None].repeat(3, -1)),
        (lambda path: Image.fromarray(ALPHA).convert("1").save(path), ALPHA[..., None].repeat(3, -1)),
    ],
)  # fmt: skip
def test_transparent_images_are_laid_on_white(make, expected, tmp_path):
    make(tmp_path / "a.png")
    found = Decoder(8)(tmp_path / "a.png", "a.png")
    torch.testing.assert_close(found, twin(expected.astype(np.uint8)), rtol=0, atol=1.01 / 127.5)


def test_the_background_may_be_chosen(tmp_path):
    Image.fromarray(np.dstack([RGB, ALPHA])).save(tmp_path / "a.png")
    red = np.where(ALPHA[..., None] > 0, RGB, [255, 0, 0]).astype(np.uint8)
    for name in ("red", "#ff0000"):
        torch.testing.assert_close(Decoder(8, 3, name)(tmp_path / "a.png", ""), twin(red), rtol=0, atol=1.01 / 127.5)
    with pytest.raises(ConfigError, match=r"data.background 'nonsense' is not a colour"):
        Decoder(8, 3, "nonsense")


def test_printers_colours_are_read(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.tif")
    torch.testing.assert_close(Decoder(8)(tmp_path / "a.tif", ""), twin(RGB), rtol=0, atol=3 / 127.5)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: path.write_bytes(b""), "a.png cannot be read as an image: repair or remove it"),
        (lambda path: path.write_text("no image"), "a.png cannot be read as an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:45]), "a.png cannot be read as an image"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "a.png cannot be read as an image"),
        (lambda path: Image.fromarray((GREY * 3000.0).astype(np.float32)).save(path, "TIFF"), "has values from 3000"),
        (lambda path: Image.fromarray((GREY + 9.5).astype(np.float32)).save(path, "TIFF"), "has values from 10.5 to"),
        (lambda path: Image.fromarray((GREY - 9.5).astype(np.float32)).save(path, "TIFF"), "has values from -8.5 to"),
        (lambda path: Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(path, "TIFF"), "has values from nan"),
        (lambda path: Image.fromarray(np.full((8, 8), -3, np.int32)).save(path, "TIFF"), "has values from -3 to -3"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(write, expected, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path)
    write(path)
    with pytest.raises(DataError) as error:
        Decoder(8)(path, "a.png")
    assert expected in str(error.value)


def test_an_image_that_is_too_large_is_not_called_broken(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(DataError, match=r"a.png is too large, with more than 60 pixels: store a smaller copy"):
        read_image(path, "a.png")


def test_a_damaged_note_on_the_orientation_does_not_damage_the_image(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    torch.testing.assert_close(Decoder(8)(tmp_path / "a.png", ""), twin(RGB), rtol=0, atol=0)


def test_the_start_image_of_a_pipeline_is_read_alike(tmp_path):
    grey16(tmp_path / "a.png")
    assert np.abs(np.asarray(_read_image(tmp_path / "a.png", None, None))[..., 0].astype(int) - GREY).max() <= 1
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.zeros((8, 16, 3), np.uint8)
    turned[:, :8] = 255
    Image.fromarray(turned).save(tmp_path / "b.png", exif=exif)
    found = np.asarray(_read_image(tmp_path / "b.png", None, None))
    assert found.shape == (16, 8, 3)
    assert found[:8].min() == 255 > found[8:].max()
    with pytest.raises(DataError, match=r"--image .*nowhere.png: file not found"):
        _read_image(tmp_path / "nowhere.png", None, None)
