"""Small files in the real formats of data sets that cannot be downloaded here."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets


def write_cifar10(root: Path, monkeypatch: Any, n: int = 20) -> None:
    """Five training batches and a test batch of n random images, with their sums set in torchvision."""
    rng, folder = np.random.default_rng(0), root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict[Any, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str) -> list[str]:
        pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": (np.arange(n) % 10).tolist()})

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch")])
    name, md5 = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})


def write_imagenet64(root: Path, n: int = 4) -> None:
    """Ten training batches and a validation batch of n random images."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for name in [*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]:
        pixels = rng.integers(0, 256, (n, 12288), dtype=np.uint8)
        np.savez(root / f"{name}.npz", data=pixels, labels=rng.integers(1, 1001, n), mean=pixels.mean(0))


def write_mnist(folder: Path, suffix: str = "") -> None:
    """40 training and 10 test images of 28 x 28 as idx files, gzipped if the suffix is .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for stem, n in (("train", 40), ("t10k", 10)):
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (n, 28, 28)), bool(suffix))
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(n) % 10, bool(suffix))


def write_idx(path: Path, array: Any, compress: bool) -> None:
    """An array of uint8 as an idx file."""
    header = np.array([0x0800 | array.ndim, *array.shape], ">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)
