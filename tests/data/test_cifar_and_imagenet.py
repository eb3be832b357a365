import numpy as np
import pytest
import torch

from cm_lightning.data.cifar import CIFAR10
from cm_lightning.data.imagenet import ImageNet64
from cm_lightning.errors import DataError
from cm_lightning.images import to_pixels
from tests.data.files import write_cifar10, write_imagenet64


def test_cifar10_is_read_and_mirrored(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    data = CIFAR10(str(tmp_path), batch_size=200)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (200, 3, 32, 32)
    assert labels.unique().tolist() == list(range(10))
    plain, _ = data.split("train")[torch.arange(100)]
    known = {image.numpy().tobytes() for image in to_pixels(plain)}
    seen = {image.numpy().tobytes() for image in to_pixels(images)}
    assert seen == known | {image.numpy().tobytes() for image in to_pixels(plain.flip(-1))}
    stored = np.frombuffer((tmp_path / "cifar-10-batches-py/test_batch").read_bytes(), np.uint8)
    (first, _), *_ = data.in_order("val")
    assert to_pixels(first[0]).flatten().numpy().tobytes() in stored.tobytes()  # red, green, blue planes
    assert len(CIFAR10(str(tmp_path), flip=False, batch_size=10).train_dataloader()) == 10


def test_cifar10_s_errors_name_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"--data.download=true"):
        CIFAR10(str(tmp_path)).split("train")
    write_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match="CIFAR-10 is missing or incomplete"):
        CIFAR10(str(tmp_path)).split("train")


def test_each_rank_reads_its_share_in_order(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    data = CIFAR10(str(tmp_path))
    whole = torch.cat([images for images, _ in data.in_order("train")])
    for rank in range(3):
        share = torch.cat([images for images, _ in data.in_order("train", rank, 3)])
        assert torch.equal(share, whole[rank::3])


def test_imagenet64_is_unpacked_once(tmp_path):
    write_imagenet64(tmp_path / "raw")
    data = ImageNet64(str(tmp_path / "raw"), batch_size=8)
    data.prepare_data()
    for path in (tmp_path / "raw").glob("*.npz"):
        if path.name != "train_data_batch_2.npz":
            path.unlink()
    data.prepare_data()
    images, labels = data.split("train")[torch.arange(40)]
    assert images.shape == (40, 3, 64, 64)
    with np.load(tmp_path / "raw/train_data_batch_2.npz") as raw:
        assert np.array_equal(to_pixels(images[4:8]).flatten(1).numpy(), raw["data"])
        assert np.array_equal(labels[4:8].numpy(), raw["labels"] - 1)
    assert next(iter(data.train_dataloader()))[0].shape == (8, 3, 64, 64)


def test_imagenet64_s_errors_name_the_file(tmp_path):
    with pytest.raises(DataError, match=r"no train_data_batch_1.npz in .*--data.root"):
        ImageNet64(str(tmp_path)).prepare_data()
    write_imagenet64(tmp_path / "raw")
    np.savez(tmp_path / "raw/train_data_batch_7.npz", data=np.zeros((4, 3), np.uint8), labels=np.ones(4))
    with pytest.raises(DataError, match=r"train_data_batch_7.npz has data of"):
        ImageNet64(str(tmp_path / "raw")).prepare_data()
    (tmp_path / "raw/train_data_batch_7.npz").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"train_data_batch_7.npz is not a complete npz"):
        ImageNet64(str(tmp_path / "raw")).prepare_data()
    assert not list((tmp_path / "raw").glob("*.npy"))  # half a split is none
