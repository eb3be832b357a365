"""A path that cannot be written is found before the work begins."""

import os
import sys
from pathlib import Path

import pytest

from cm_lightning.errors import ConfigError
from cm_lightning.files import replacing, require_writable


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("kept")
    Path("folder/old.png").write_text("kept")
    Path("nowhere").symlink_to("gone/away")
    Path("linked").symlink_to("folder")


def tree():
    return sorted(str(path) for path in Path().rglob("*"))


@pytest.mark.parametrize(
    "path", ["new.png", "folder/new.png", "folder/old.png", "a/b/c/new.png", "linked/new.png", "nowhere", "noending"]
)
def test_what_can_be_written_passes_and_leaves_nothing_behind(path):
    before = tree()
    require_writable(Path(path), "--output")
    assert tree() == before
    assert Path("folder/old.png").read_text() == "kept"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert Path(path).read_text() == "new"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("folder", "is a folder: name a file"),
        ("linked", "is a folder: name a file"),
        (".", "is a folder: name a file"),
        ("", "is a folder: name a file"),
        ("/", "is a folder: name a file"),
        ("file/new.png", "/file is not a folder: name another place"),
        ("file/deep/er/new.png", "/file is not a folder: name another place"),
        ("nowhere/new.png", "/nowhere is not a folder: name another place"),
        ("/dev/null", "is not a regular file: name another"),
        ("/dev/null/new.png", "/dev/null is not a folder: name another place"),
        ("x" * 300 + ".png", "cannot be written (File name too long): name another place"),
        ("x" * 250 + ".png", "cannot be written (File name too long): name another place"),
        ("x" * 300 + "/new.png", "cannot be written (File name too long): name another place"),
        pytest.param(
            "/proc/new.png",
            "cannot be written (No such file or directory): name another place",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
        ),
    ],
)
def test_what_cannot_be_written_is_refused_by_the_name_of_its_option(path, reason):
    before = tree()
    with pytest.raises(ConfigError) as caught:
        require_writable(Path(path), "--output")
    assert str(caught.value).startswith(f"--output {Path(path)}")
    assert str(caught.value).endswith(reason)
    assert tree() == before


def test_a_folder_without_permission_is_refused(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ConfigError, match=r"^--to folder/a.png cannot be written \(Permission denied\): name another"):
        require_writable(Path("folder/a.png"), "--to")
