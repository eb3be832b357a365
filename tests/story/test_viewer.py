"""Pictures are shown by what the system has."""

import os
import sys
from pathlib import Path

import pytest

from cm_lightning import viewer


@pytest.mark.parametrize(
    ("platform", "installed", "called"),
    [("linux", ["xdg-open"], ["xdg-open", "a.png"]), ("darwin", ["open"], ["open", "a.png"]),
     ("win32", [], ["startfile", "a.png"]), ("linux", ["open"], ["browser", Path("a.png").resolve().as_uri()])],
)  # fmt: skip
def test_the_viewer(monkeypatch, platform, installed, called):
    calls = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(viewer.shutil, "which", lambda name: name if name in installed else None)
    monkeypatch.setattr(viewer.subprocess, "Popen", lambda command, **_: calls.append(command))
    monkeypatch.setattr(os, "startfile", lambda path: calls.append(["startfile", str(path)]), raising=False)
    monkeypatch.setattr(viewer.webbrowser, "open", lambda url: not calls.append(["browser", url]))
    viewer.show([Path("a.png")])
    assert calls == [called]


def test_without_a_viewer_a_line_says_where_the_picture_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
    monkeypatch.setattr(viewer.webbrowser, "open", lambda url: False)
    viewer.show([Path("a.png")])
    assert capsys.readouterr().err == "--open: a viewer was not found; the image is a.png\n"
