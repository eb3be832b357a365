"""The one list of public names: each imports, is typed, and is known to the command line."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from torch import nn

import cm_lightning
from cm_lightning import complaints, registry
from cm_lightning.errors import ConfigError
from cm_lightning.metrics.extractor import Extractor
from cm_lightning.recording import Recorded

LIST = Path(registry.__file__).with_name("__init__.pyi")
#: Types of what a recipe names; a class of none of them is not named in recipes.
TYPES = (L.LightningModule, L.LightningDataModule, Callback, Extractor, Recorded)
#: Classes of those types that the suite itself makes, or that others build on.
OF_THE_SUITE = {
    "PyramidNet", "TrainedModule", "GenerativeModule", "ConsistencyModule", "LatentModule", "GenerativeDataModule",
    "CaptionedDataModule", "Resumed", "RunDirectory", "Distilled", "FlowMapModule", "MissedValidation", "WithCritic",
    "StudentModule", "FewStepModule", "StagedDistillation", "DistributionMatching", "StageRates",
}  # fmt: skip


def classes():
    found = {name: registry.find(name) for name in registry.HOMES}
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, TYPES)}


def subclasses(cls):
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def test_every_name_is_imported_from_where_the_list_says():
    assert cm_lightning.__all__ == list(registry.HOMES)
    assert set(registry.HOMES) <= set(dir(cm_lightning))
    for name, home in registry.HOMES.items():
        assert getattr(cm_lightning, name) is getattr(importlib.import_module(home), name)
        assert getattr(cm_lightning, name).__module__ == home


def test_every_line_of_the_list_is_read_and_is_one_that_type_checkers_take_as_public():
    *lines, version = ast.parse(LIST.read_text()).body
    assert ast.unparse(version) == "__version__: str"
    assert [line.names[0].name for line in lines] == list(registry.HOMES)
    for line in lines:
        (alias,) = line.names
        assert isinstance(line, ast.ImportFrom)
        assert alias.asname == alias.name  # which makes it public in a stub
        assert line.level == 1
        assert f"cm_lightning.{line.module}" == registry.HOMES[alias.name]
    assert LIST.with_name("py.typed").exists()


def test_a_name_that_is_not_listed_is_not_an_attribute():
    assert not hasattr(cm_lightning, "NoSuchName")


def test_every_class_that_a_recipe_may_name_is_listed():
    for module in pkgutil.walk_packages(cm_lightning.__path__, "cm_lightning."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = {cls for base in TYPES for cls in subclasses(base) if cls.__module__.startswith("cm_lightning.")}
    concrete = {cls for cls in found if not inspect.isabstract(cls) and not cls.__name__.startswith("_")}
    of_recipes = {c for c in concrete if c is not Recorded and not c.__module__.startswith("cm_lightning.self_")}
    assert {cls.__name__ for cls in of_recipes} - OF_THE_SUITE == set(classes())


def test_the_shipped_files_spell_no_class_of_the_suite_by_its_module():
    root = Path(__file__).parents[1]
    files = [path for folder in ("experiments", "sweeps", "tests/conf") for path in (root / folder).rglob("*.y*ml")]
    assert len(files) > 20
    long = [f"{path}: {home}.{name}" for path in files for name, home in registry.HOMES.items()
            if re.search(rf"\b{re.escape(f'{home}.{name}')}\b", path.read_text())]  # fmt: skip
    assert long == []


@pytest.mark.parametrize("base", [*TYPES[:4], nn.Module, "the suite's own"])
def test_every_class_is_known_by_its_short_name(base, capsys):
    """``--x.help NAME`` describes the class of that name."""
    for name, cls in classes().items():
        own = next(c for c in cls.__mro__[::-1] if c.__module__.startswith("cm_lightning.") and c is not Recorded)
        kind = next((known for known in (*TYPES[:4], nn.Module) if issubclass(cls, known)), "the suite's own")
        if kind != base:
            continue
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--x", type=own if isinstance(base, str) else base)
        with pytest.raises(SystemExit):
            parser.parse_args(["--x.help", name])
        assert f"cm_lightning.{name}" in capsys.readouterr().out


def test_the_start_imports_what_is_quick_and_names_bring_the_rest(tmp_path):
    recipe = tmp_path / "model.yaml"
    recipe.write_text("model: {class_path: LatentDiffusionModule}\n")
    code = f"""
import contextlib, sys
from cm_lightning import cli, registry

def known(*arguments):
    with contextlib.suppress(SystemExit):
        cli.main(["fit", *arguments, "--print_config"])
    return {{name for name, home in registry.HOMES.items() if home in sys.modules}}

quick = known("--model=ConsistencyTraining")
assert quick == registry.HOMES.keys() - registry.SLOW, sorted(quick)
assert "diffusers" not in sys.modules
assert known("--config={recipe}") == registry.HOMES.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "class_path: cm_lightning.LatentDiffusionModule" in done.stdout


def test_a_short_name_without_its_extra_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise ConfigError(f"{name}: this needs diffusers: pip install 'cm-lightning[lcm]'")

    monkeypatch.setattr(complaints, "find", missing)
    message = "Expected a dot import path string: LoRA\nGiven value type: <class 'str'>\n"
    said = complaints.complaint(f'Parser key "model.student":\n{message}', [])
    assert said == "--model.student: LoRA: this needs diffusers: pip install 'cm-lightning[lcm]'"


def test_a_slow_name_is_suggested_too():
    message = "Expected a dot import path string: LatentConsistencyDistilation\nGiven value type: <class 'str'>\n"
    assert "perhaps LatentConsistencyDistillation is meant" in complaints.complaint(
        f'Parser key "model":\n{message}', []
    )
