"""The layout of a data set by the names of its files: the images, their classes and splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm_lightning.data.decode import ENDINGS
from cm_lightning.data.tree import Name, Tree
from cm_lightning.errors import DataError

#: Folders at the root that are splits.
_KINDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
#: Suffixes of files that belong beside images and are not reported.
_BESIDE = {
    *("", ".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md", ".html", ".xml", ".yaml", ".yml"),
    *(".npz", ".npy", ".pkl", ".pt", ".safetensors", ".log", ".py", ".ipynb", ".toml", ".ini", ".cfg"),
}


@dataclass(frozen=True)
class Layout:
    """The images of a split.

    Attributes:
        names: names of the files, sorted.
        labels: (N,) their classes; all 0 without classes.
        classes: names of the classes; empty without classes.
    """

    names: list[Name]
    labels: Tensor
    classes: list[str]

    def __getitem__(self, index: Tensor) -> Layout:
        return Layout([self.names[i] for i in index.tolist()], self.labels[index], self.classes)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 if there are none, or if all images share one."""
        return len(self.classes) if len(self.classes) > 1 else 0

    def counts(self, most: int = 10) -> str:
        """The classes by name and number of images, as many as fit into a line."""
        numbers = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        shown = [f"{name} {n:,}" for name, n in zip(self.classes, numbers, strict=True)]
        return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def read_layout(tree: Tree, split: str, class_folders: bool = True) -> Layout:
    """Find the images of ``train`` or ``val``.

    The classes are those of EDM's ``dataset.json`` at the root, else the folders that all images lie in, in
    alphabetical order. ``train`` and ``val`` (also ``valid``, ``validation``, ``test``) at the root are splits; without
    one for validation every tenth image of each class is held out, and test images are not used.

    Args:
        tree: all files.
        split: ``train`` or ``val``.
        class_folders: whether folders are classes; if not, the images are without classes.

    Raises:
        DataError: there are fewer than 2 images, or their folders do not define classes or splits.
    """
    top = split_folders(tree)
    reference = _images(tree, top["train"])
    labels, classes = _classes(tree, reference, top["train"], class_folders)
    train = Layout(reference, labels, classes)
    if top["val"] is None:
        return train[members(split, train.labels)]
    if split == "train":
        return train
    names = _images(tree, top["val"])
    labels, own = _classes(tree, names, top["val"], class_folders, classes)
    return Layout(names, labels, own)


def split_folders(tree: Tree) -> dict[str, Name | None]:
    """The folders of ``train`` and ``val``; ``train`` is the root itself, and ``val`` None, if there are none."""
    tops = sorted({name.parts[0] for name in images_in(tree) if len(name.parts) > 1})
    found = {kind: [top for top in tops if top.lower() in kinds] for kind, kinds in _KINDS.items()}
    only_splits = len(tops) == sum(map(len, found.values()))
    if not found["train"] or not (only_splits or found["val"]):
        return {"train": Name(), "val": None}
    for folders in found.values():
        if len(folders) > 1:
            raise DataError(f"{tree.root} has several folders for one split, {', '.join(folders)}: keep one of them")
    return {"train": Name(found["train"][0]), "val": Name(found["val"][0]) if found["val"] else None}


def images_in(tree: Tree) -> list[Name]:
    """All files with the suffix of an image, sorted."""
    return [name for name in tree.names if name.suffix.lower() in ENDINGS]


def left_out(tree: Tree) -> str:
    """The number of files that are not read as images, by suffix, most frequent first; "" if there are none."""
    endings = Counter(name.suffix.lower() for name in tree.names)
    others = {ending: n for ending, n in endings.most_common() if ending not in ENDINGS | _BESIDE}
    return ", ".join(f"{n:,} {ending}" for ending, n in others.items())


def _images(tree: Tree, top: Name | None) -> list[Name]:
    assert top is not None
    found = [name for name in images_in(tree) if top == Name() or name.parts[0] == str(top)]
    if len(found) < 2:
        hint = f"; left out: {others}" if (others := left_out(tree)) else ""
        raise DataError(
            f"{tree.shown(top)} has {len(found)} image(s): expected at least 2, of {', '.join(sorted(ENDINGS))}{hint}"
        )
    return found


def _classes(
    tree: Tree, names: list[Name], top: Name | None, class_folders: bool, known: Sequence[str] | None = None
) -> tuple[Tensor, list[str]]:
    """The labels (N,) of images, and the names of their classes."""
    alike: tuple[Tensor, list[str]] = torch.zeros(len(names), dtype=torch.int64), []
    if not class_folders or (known is not None and not known):
        return alike
    if (listed := _listed_labels(tree)) is not None:
        return _by_list(tree, names, listed) if listed else alike
    assert top is not None
    inside = [name.relative_to(top).parts for name in names]
    stray = [name for name, parts in zip(names, inside, strict=True) if len(parts) == 1]
    if len(stray) == len(names):
        if known:
            raise DataError(
                f"{tree.shown(top)} does not have the class folders of the training images: sort its images into the "
                "same folders"
            )
        return alike
    if stray:
        raise DataError(
            f"{tree.shown(stray[0])} lies beside folders of classes ({len(stray)} such image(s)): move it into one, or "
            "set --data.class_folders=false to train without classes"
        )
    folders = [parts[0] for parts in inside]
    classes = sorted(set(folders)) if known is None else [*known]
    if strangers := set(folders) - set(classes):
        raise DataError(f"{tree.shown(top / min(strangers))} is not a class of the training images: move or remove it")
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[folder] for folder in folders]), classes


def _listed_labels(tree: Tree) -> dict[str, int] | None:
    """The labels in EDM's ``dataset.json``, empty if it states that there are none; None without such a file."""
    if Name("dataset.json") not in tree.names:
        return None
    path = tree.shown(Name("dataset.json"))
    try:
        with tree.open(Name("dataset.json")) as file:
            content = json.load(file)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: repair or remove it") from error
    if not isinstance(content, dict) or "labels" not in content:
        return None
    try:
        pairs = [(str(name), label) for name, label in content["labels"] or ()]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: labels must be pairs of a file name and a whole number") from error
    if any(isinstance(label, bool) or not isinstance(label, int) or label < 0 for _, label in pairs):
        raise DataError(f"{path}: labels must be whole numbers from 0 up")
    return dict(pairs)


def _by_list(tree: Tree, names: list[Name], listed: dict[str, int]) -> tuple[Tensor, list[str]]:
    missing = [name for name in names if str(name) not in listed]
    if missing:
        raise DataError(f"dataset.json lacks a label for {tree.shown(missing[0])} ({len(missing)} such image(s))")
    return torch.tensor([listed[str(name)] for name in names]), [str(i) for i in range(max(listed.values()) + 1)]


def members(split: str, labels: Tensor, every: int = 10) -> Tensor:
    """The numbers (M,), ascending, of the items of ``train`` or ``val`` in a data set that is not already split.

    Args:
        split: ``val`` has every tenth item of each class, and at least one in all; ``train`` has the others.
        labels: (N,) the classes of the items; N >= 1.
        every: one item in this many is held out.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in set(labels.tolist()):
        held_out[(labels == label).nonzero()[every - 1 :: every, 0]] = True
    held_out[-1] |= not held_out.any()
    return (held_out if split == "val" else ~held_out).nonzero()[:, 0]
