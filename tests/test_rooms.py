"""The packages of the suite: imports point down, without cycles."""

from __future__ import annotations

import ast
import sys
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cm_lightning"
#: From the ground up; a room imports only those before it. Rooms that are not listed must only be free of circles.
STOREYS = ["core", "backbones", "interop", "modules", "callbacks", "export", "commands", "cli"]
#: Rooms beside the modules, and what they may import of the others.
BESIDE = {"data": set(), "metrics": set()}
#: Small files that the mathematics shares with the rest.
SHARED = {"domains", "errors", "recording"}


def imports(path):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name):
    """The package of a name: ``core`` for ``cm_lightning.core.noise.add_noise``, ``__init__`` for top-level names."""
    part = name.split(".")[1] if "." in name else "__init__"
    return part if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file() else "__init__"


def rooms():
    """For each package, those that it imports, with the files that do so."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        own = relative.parts[0].removesuffix(".py")
        used = found.setdefault(own, {})
        for name in imports(path):
            if name.partition(".")[0] == PACKAGE.name and room(name) != own:
                used.setdefault(room(name), set()).add(str(relative))
    return found


ROOMS = rooms()


def circle(graph):
    """The nodes of a cycle; None if there is none."""
    done = set()

    def walk(node, way):
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return None
        done.add(node)
        return next((found for other in graph.get(node, ()) if (found := walk(other, [*way, node]))), None)

    return next((found for node in graph if (found := walk(node, []))), None)


def test_no_way_leads_in_a_circle():
    found = circle(ROOMS)
    assert found is None, [(a, b, ROOMS[a][b]) for a, b in pairwise(found)]


def test_a_circle_is_found():
    assert circle({"a": ["b", "c"], "b": ["d"], "d": [], "c": ["e"], "e": ["d", "a"]}) == ["a", "c", "e", "a"]


@pytest.mark.parametrize("own", STOREYS)
def test_imports_point_down(own):
    above = STOREYS[STOREYS.index(own) + 1 :]
    assert not {other: ROOMS[own][other] for other in above if other in ROOMS[own]}


@pytest.mark.parametrize("own", BESIDE)
def test_data_and_metrics_stand_on_their_own(own):
    large = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert ROOMS[own].keys() & large <= BESIDE[own]


def test_the_mathematics_needs_torch_alone():
    for path in sorted(PACKAGE.glob("core/*.py")):
        outside = {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names - {PACKAGE.name, "torch"}
        assert not outside, path
    assert ROOMS["core"].keys() == SHARED
    assert not {other for shared in SHARED for other in ROOMS[shared]} - SHARED
