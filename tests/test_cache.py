"""A disk that is full or read-only, a user without a home: one line, and training continues where it can."""

import errno
import os
import shutil
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm_lightning import cache, failures
from cm_lightning.cache import cache_folder, is_kept, keep
from cm_lightning.cli import main
from cm_lightning.data.shards import shard_index
from cm_lightning.failures import describe
from cm_lightning.metrics.scores import Scores, load_reference, save_reference, usual_measures
from tests.processes import CONF


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cm-lightning"])
    Path("file").write_text("kept")


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(path, *_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def test_what_can_be_kept_is_kept():
    keep(Path("a/b/x.safetensors"), lambda path: save_file({"a": torch.ones(2)}, path))
    assert is_kept(Path("a/b/x.safetensors"))
    assert load_file("a/b/x.safetensors")["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("path", "write", "reason"),
    [
        ("file/x", Path.touch, "File exists"),
        ("file/deep/x", Path.touch, "Not a directory"),
        ("x" * 300, Path.touch, "File name too long"),
        ("new/x", full, "No space left on device"),
        ("new/x", read_only, "Read-only file system"),
        ("new/x.safetensors", lambda path: save_file({"a": torch.ones(1)}, path / "no/folder"), "No such file"),
    ],
)
def test_a_cache_that_cannot_be_written_is_a_warning_with_path_and_remedy(path, write, reason):
    with pytest.warns(UserWarning, match="cannot be written") as caught:
        keep(Path(path), write)
    (line,) = [str(warning.message) for warning in caught]
    assert line.startswith(f"{path} cannot be written (")
    assert reason in line
    assert line.endswith("set the option cache, or XDG_CACHE_HOME, to a folder that can be written")
    assert not is_kept(Path(path))
    assert Path("file").read_text() == "kept"


def test_other_errors_are_raised():
    with pytest.raises(ValueError, match="could not"):
        keep(Path("x"), lambda _: float("could not"))


def test_a_folder_that_cannot_be_looked_into_keeps_nothing(monkeypatch):
    monkeypatch.setattr(Path, "is_file", read_only)
    assert not is_kept(Path("x"))


def test_statistics_that_cannot_be_kept_stay_in_use():
    (measure, *_) = usual_measures(kernel=False)
    Scores([measure])
    measure.add_reference(torch.rand(4, 1, 28, 28) * 2 - 1)
    with pytest.warns(UserWarning, match=r"file/x\.safetensors cannot be written"):
        save_reference(measure, Path("file/x.safetensors"), write=True)
    save_reference(measure, Path("x.safetensors"), write=True)
    load_reference(measure, Path("x.safetensors"))


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ("mine", {"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "mine"),
        (None, {"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/cm_lightning"),
        (None, {"HOME": "/h"}, "/h/.cache/cm_lightning"),
        (None, {"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/cm_lightning"),
    ],
)
def test_the_folder_of_the_cache(given, environment, expected, monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder(given) == Path(expected)


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", nowhere)
    assert cache_folder() == Path(tempfile.gettempdir()) / f"cm_lightning-{os.getuid()}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device: free space there, or write to"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), "a.png: no space left on device: free space there"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk quota exceeded: free space there"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: read-only file system: write to another folder"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: permission denied"),
    ],
)
def test_an_error_of_the_disk_is_a_line_with_a_remedy(error, line):
    assert describe(error).startswith(line)


def test_an_unexpected_error_is_one_line_without_a_place_for_its_traceback_too(monkeypatch, capsys):
    monkeypatch.setattr(failures.tempfile, "NamedTemporaryFile", full)
    monkeypatch.delenv(failures.DEBUG, raising=False)
    with pytest.raises(SystemExit), failures.reported():
        raise KeyError("momentum")
    assert capsys.readouterr().err == "error: KeyError: 'momentum' (traceback: --debug shows it)\n"


def test_a_full_disk_is_found_before_training(monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30, 0))
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={CONF}/toy.yaml"])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert line.startswith("error: runs/toy: the disk has 0 MiB left, and the weights take 0: free space there, or")
    assert not Path("runs").exists()


def test_an_index_of_shards_that_cannot_be_kept_is_used_all_the_same(monkeypatch):
    monkeypatch.setattr("cm_lightning.data.shards._rows", lambda _: [(1, 2, 3, 4, 0)])
    with pytest.warns(UserWarning, match="cannot be written"):
        assert shard_index(Path("file"), Path("file")).tolist() == [[1, 2, 3, 4, 0]]
    assert shard_index(Path("file"), Path("folder")).tolist() == [[1, 2, 3, 4, 0]]
    monkeypatch.setattr("cm_lightning.data.shards._rows", full)
    assert shard_index(Path("file"), Path("folder")).tolist() == [[1, 2, 3, 4, 0]]
