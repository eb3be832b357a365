"""Folders as they occur: classes, splits, links, files of operating systems, EDM's layout; also in zip files."""

import json
import logging
import os
import pickle
import shutil
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import yaml
from PIL import Image

from cm_lightning.cli import main
from cm_lightning.data.captioned_folder import CaptionedFolder
from cm_lightning.data.folder import ImageFolder
from cm_lightning.errors import ConfigError, DataError
from tests.helpers import module, trainer


def write(root, *names, size=(6, 6), mode="RGB"):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, (i * 9 % 256,) * len(Image.new(mode, (1, 1)).getbands())).save(path)


def classes(root, **options):
    """The images of each class, by its name, in training and validation together, sorted."""
    data = ImageFolder(str(root), size=4, **options)
    found = {}
    for split in ("train", "val"):
        layout = data._layout(split)
        for name, label in zip(layout.names, layout.labels.tolist(), strict=True):
            found.setdefault(layout.classes[label] if layout.classes else "", []).append(str(name))
    return {name: sorted(files) for name, files in sorted(found.items())}


CAT_AND_DOG = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
SORTED = {"cat": ["cat/1.png", "cat/2.png"], "dog": ["dog/1.png", "dog/2.png"]}


def hidden_files(root):
    write(root, ".ipynb_checkpoints/1.png", ".thumbnails/2.png", "__MACOSX/cat/3.png", "cat/._1.png", ".hidden.png")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / ".DS_Store").write_bytes(b"x")


def links(root):
    shutil.move(root / "cat", root.parent / "elsewhere")
    os.symlink(root.parent / "elsewhere", root / "cat")
    os.symlink(root, root / "dog" / "above")  # leads back: not followed
    os.symlink(root / "nowhere", root / "dog" / "broken.png")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: None,
        hidden_files,
        links,
        lambda root: (root / "empty").mkdir(),
        lambda root: (root / "notes.txt").write_text("x"),
        lambda root: (root / "dog" / "a.txt").write_text("x"),
    ],
)
def test_class_folders_are_found_whatever_lies_beside(change, tmp_path):
    write(tmp_path / "in", *CAT_AND_DOG)
    change(tmp_path / "in")
    assert classes(tmp_path / "in") == SORTED


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1.png", "2.png"], {"": ["1.png", "2.png"]}),
        (["cat/a/1.png", "cat/b/2.png", "dog/1.png"], {"cat": ["cat/a/1.png", "cat/b/2.png"], "dog": ["dog/1.png"]}),
        (["10/1.png", "9/1.png", "9/2.png"], {"10": ["10/1.png"], "9": ["9/1.png", "9/2.png"]}),
        (["train/cat/1.png", "train/dog/1.png", "val/cat/2.png"],
         {"cat": ["train/cat/1.png", "val/cat/2.png"], "dog": ["train/dog/1.png"]}),
        (["train/1.png", "train/2.png", "val/3.png", "val/4.png"],
         {"": ["train/1.png", "train/2.png", "val/3.png", "val/4.png"]}),
        (["train/a/1.png", "train/b/1.png", "valid/a/2.png", "valid/b/3.png", "test/a/9.png"],
         {"a": ["train/a/1.png", "valid/a/2.png"], "b": ["train/b/1.png", "valid/b/3.png"]}),
        (["Train/a/1.png", "Train/b/1.png", "Validation/a/2.png", "Validation/b/3.png"],
         {"a": ["Train/a/1.png", "Validation/a/2.png"], "b": ["Train/b/1.png", "Validation/b/3.png"]}),
        (["train/a/1.png", "train/b/1.png", "test/a/9.png"], {"a": ["train/a/1.png"], "b": ["train/b/1.png"]}),
        (["train/1.png", "train/2.png", "test/9.png"], {"": ["train/1.png", "train/2.png"]}),
        (["train/1.png", "bus/1.png"], {"bus": ["bus/1.png"], "train": ["train/1.png"]}),  # a class of vehicles
    ],
)  # fmt: skip
def test_layouts(names, expected, tmp_path):
    write(tmp_path, *names)
    if "val/cat/2.png" in names:
        write(tmp_path, "val/cat/2.png", "val/cat/3.png")
        expected["cat"].append("val/cat/3.png")
    assert classes(tmp_path) == expected


def test_a_test_is_never_trained_on(tmp_path):
    write(tmp_path, *[f"train/{i}.png" for i in range(20)], *[f"test/{i}.png" for i in range(20)])
    data = ImageFolder(str(tmp_path), size=4)
    assert [len(data.split(split)) for split in ("train", "val")] == [18, 2]
    assert all(name.parts[0] == "train" for split in ("train", "val") for name in data.split(split).names)


EDM = {"labels": [["00000/img0.png", 1], ["00000/img1.png", 0], ["00001/img2.png", 2], ["00001/img3.png", 1]]}
EDM_NAMES = [name for name, _ in EDM["labels"]]


@pytest.mark.parametrize("packed", [False, True])
def test_the_layout_of_edm(packed, tmp_path):
    root = tmp_path / "in"
    write(root, *EDM_NAMES)
    (root / "dataset.json").write_text(json.dumps(EDM))
    if packed:
        root = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    assert classes(root) == {"0": EDM_NAMES[1:2], "1": [EDM_NAMES[0], EDM_NAMES[3]], "2": EDM_NAMES[2:3]}
    data = ImageFolder(str(root), size=4)
    assert data.num_classes == 3
    image, label = pickle.loads(pickle.dumps(data.split("train")))[0]  # as a loader's process has it
    assert image.shape == (3, 4, 4)
    assert label == 1


def test_a_zip_follows_the_rules_of_folders(tmp_path):
    write(tmp_path / "in", *CAT_AND_DOG)
    hidden_files(tmp_path / "in")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "in")
    assert classes(archive) == SORTED
    (tmp_path / "broken.zip").write_bytes(b"x")
    with pytest.raises(DataError, match=r"broken.zip cannot be read as a zip file"):
        ImageFolder(str(tmp_path / "broken.zip")).split("train")
    ZipFile(tmp_path / "none.zip", "w").close()
    with pytest.raises(DataError, match=r"0 image\(s\)"):
        ImageFolder(str(tmp_path / "none.zip"), size=4).split("train")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"labels": null}', {"": EDM_NAMES}),
        ('{"labels": []}', {"": EDM_NAMES}),
        ('{"of another": "program"}', {"00000": EDM_NAMES[:2], "00001": EDM_NAMES[2:]}),
        ("not json", "dataset.json is not JSON"),
        ('{"labels": [["00000/img0.png", 1]]}', "lacks a label for"),
        ('{"labels": [["00000/img0.png", -1]]}', "labels must be whole numbers from 0 up"),
        ('{"labels": [["00000/img0.png", "cat"]]}', "labels must be whole numbers from 0 up"),
        ('{"labels": [3]}', "labels must be pairs"),
    ],
)
def test_odd_lists_of_labels(content, expected, tmp_path):
    write(tmp_path, *EDM_NAMES)
    (tmp_path / "dataset.json").write_text(content)
    if isinstance(expected, dict):
        assert classes(tmp_path) == expected
    else:
        with pytest.raises(DataError, match=expected):
            classes(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([*CAT_AND_DOG, "stray.png"], r"stray.png lies beside folders of classes \(1 such image.*class_folders=false"),
        (["train/cat/1.png", "train/dog/1.png", "train/x.png", "val/cat/1.png"], r"train/x.png lies beside"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"], r"val/c is not a class of the training"),
        (["train/a/1.png", "train/b/1.png", "val/1.png", "val/2.png"], r"val does not have the class folders"),
        (["train/1.png", "train/2.png", "val/1.png", "valid/1.png"], r"several folders for one split, val, valid"),
        (["1.png"], r"1 image\(s\): expected at least 2"),
    ],
)
def test_folders_that_do_not_tell_are_refused(names, expected, tmp_path):
    write(tmp_path, *names)
    with pytest.raises(DataError, match=expected):
        classes(tmp_path)


def test_stray_images_may_be_taken_as_alike(tmp_path):
    write(tmp_path, *CAT_AND_DOG, "stray.png")
    assert classes(tmp_path, class_folders=False) == {"": sorted([*CAT_AND_DOG, "stray.png"])}


def test_size_and_channels_come_from_the_images_where_they_are_not_given(tmp_path):
    write(tmp_path / "grey", "1.png", "2.png", mode="L")
    assert ImageFolder(str(tmp_path / "grey")).image_shape == (1, 6, 6)
    assert ImageFolder(str(tmp_path / "grey"), channels=3, size=5).image_shape == (3, 5, 5)
    write(tmp_path / "mixed", "1.png")
    write(tmp_path / "mixed", "2.png", size=(9, 9))
    with pytest.raises(ConfigError, match=r"differ in size or are not squares: set --data.size"):
        ImageFolder(str(tmp_path / "mixed")).split("train")
    write(tmp_path / "wide", "1.png", "2.png", size=(9, 5))
    with pytest.raises(ConfigError, match=r"set --data.size"):
        ImageFolder(str(tmp_path / "wide")).split("train")


def test_a_run_says_what_it_found_and_what_becomes_of_the_classes(tmp_path, log, monkeypatch):
    write(tmp_path, *[f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)])
    for name in ("a.heic", "b.jxl", "c.jxl", "readme.txt"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    data = ImageFolder(str(tmp_path), size=4, batch_size=4)

    class Net(torch.nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.num_classes, self.weight = num_classes, torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, noise_label, class_label=None):
            return x * self.weight

    monkeypatch.setattr(logging.getLogger("lightning_utilities"), "propagate", True, raising=False)
    for num_classes, said in ((0, "2 classes, which the network does not use (num_classes: 2 of the backbone would): "),
                              (2, "2 classes: ")):  # fmt: skip
        own = module(backbone=Net(num_classes), image_shape=(3, 4, 4))
        trainer(tmp_path, max_steps=1).fit(own, datamodule=data)
        assert f"18 images to train on, 2 held out, as 4 x 4 RGB; {said}cat 9, dog 9; " in "\n".join(log)
        assert "left out, because they are not readable images: 2 .jxl, 1 .heic" in "\n".join(log)
        log.clear()


def test_captions_lie_beside_images_of_any_kind(tmp_path):
    write(tmp_path, "1.png", "sub/2.png", ".hidden/3.png")
    for name in ("1.txt", "sub/2.txt"):
        (tmp_path / name).write_text(f"caption of {name}")
    data = CaptionedFolder(str(tmp_path), size=4)
    assert sorted(caption for split in ("train", "val") for _, caption in data.split(split)) == [
        "caption of 1.txt", "caption of sub/2.txt",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"folder not found: nowhere: set --data.root"):
        CaptionedFolder("nowhere").split("train")


RECIPE = """
trainer:
  accelerator: cpu
  max_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: CSVLogger, init_args: {save_dir: runs, name: folder}}
model:
  class_path: ConsistencyTraining
  init_args:
    backbone: {class_path: UNet, init_args: {channels: 8, multipliers: [1], attention_levels: [], blocks: 1}}
data: {class_path: ImageFolder, init_args: {root: in, batch_size: 4}}
"""


def fit(tmp_path, monkeypatch, *options):
    """The arguments that the model was built with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    Path("recipe.yaml").write_text(RECIPE)
    main(["fit", "--config=recipe.yaml", *options])
    return yaml.safe_load(next(Path("runs").rglob("config.yaml")).read_text())["model"]["init_args"]


@pytest.mark.parametrize(
    ("options", "classes", "channels"),
    [([], 2, 3), (["--data.channels=1"], 2, 1), (["--model.backbone.num_classes=0"], 0, 3)],
)
def test_the_model_takes_its_sizes_from_the_folder(options, classes, channels, tmp_path, monkeypatch):
    write(tmp_path / "in", *CAT_AND_DOG, size=(8, 8))
    built = fit(tmp_path, monkeypatch, *options)
    assert built["image_shape"] == [channels, 8, 8]
    assert built["backbone"]["init_args"]["num_classes"] == classes
    assert built["backbone"]["init_args"]["image_channels"] == channels
