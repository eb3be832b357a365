"""Showing an image with the system's viewer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path


def show(paths: Sequence[Path]) -> None:
    """Open files or folders without waiting; without a viewer, a line says so."""
    for path in paths:
        _show(path)


def _show(path: Path) -> None:
    if sys.platform == "win32":
        os.startfile(path)
    elif viewer := shutil.which("open" if sys.platform == "darwin" else "xdg-open"):
        nothing = subprocess.DEVNULL
        subprocess.Popen([viewer, str(path)], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
    elif not webbrowser.open(path.resolve().as_uri()):
        sys.stderr.write(f"--open: a viewer was not found; the image is {path}\n")
