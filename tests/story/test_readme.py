"""The shell commands of README run as they are written, in its order, in a folder like the repository.

Only options are added to them, which make the networks small and the runs short. What cannot be had offline is
written where the commands look for it: images, a small pipeline, and an adapter in the published format.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from cm_lightning.__main__ import _HELP
from cm_lightning.__main__ import main as cm_lightning
from cm_lightning.commands import compare, edit, export, prompt, sample, search, serve, sweep
from tests.helpers import few_digits
from tests.latent.test_lora import write as write_lora
from tests.latent.tiny import tiny_sd
from tests.processes import ROOT

README = (ROOT / "README.md").read_text()


def shell_commands(page: str) -> list[str]:
    """The commands of all indented and fenced blocks of the shell, those that ``&&`` joins one by one."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    shells = ("bash", "sh", "shell", "console")
    page = fence.sub(lambda block: textwrap.indent(block[2], "    ") if block[1] in shells else "", page)
    code = "\n".join(line[4:] for line in page.splitlines() if line.startswith("    "))
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    return [part for line in lines for part in line.removeprefix("$ ").split(" && ")]


class Short(NamedTuple):
    """How a command is shortened, and a file that it leaves behind.

    Args:
        options: the options to add.
        leaves: path of the file; "" for a command that is not run.
    """

    options: str = ""
    leaves: str = ""


_STEPS = "--trainer.accelerator cpu --trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.limit_val_batches 1"
_DIGITS = (
    f"{_STEPS} --model.backbone.channels 8 --data.batch_size 8 --callbacks.samples.num_samples 4 "
    "--callbacks.quality.num_samples 10"
)
_IMAGES = f"{_STEPS} --data.size 16 --data.batch_size 4 --data.num_workers 0 --callbacks.throughput null"
_LAST = "version_0/checkpoints/last.ckpt"

#: The beginning of each command, and its shortening.
SHORTER = {
    "pip install": Short(),  # it needs a network
    "pytest": Short(),  # it runs this suite
    "python -m cm_lightning fit --config experiments/mnist/ct.yaml": Short(
        f"{_DIGITS} --model.backbone.noise_embedding.init_args.width 8", f"runs/mnist-ct/{_LAST}"
    ),
    "cm-lightning fit --config experiments/folder/ct.yaml": Short(
        f"{_IMAGES} --model.backbone.channels 32 --model.backbone.norm_groups 32 --model.backbone.blocks 1 "
        "--callbacks.samples.num_samples 4",
        f"runs/folder-ct/{_LAST}",
    ),
    "cm-lightning fit --config experiments/mnist/compare/teacher.yaml": Short(_DIGITS, f"runs/mnist-teacher/{_LAST}"),
    "cm-lightning fit --config experiments/mnist/compare/cd.yaml": Short(_DIGITS, f"runs/mnist-cd/{_LAST}"),
    "cm-lightning fit --config experiments/mnist/compare/ect.yaml": Short(_DIGITS, f"runs/mnist-ect/{_LAST}"),
    "cm-lightning compare": Short(leaves="compare/compare.html"),
    "cm-lightning sweep": Short("--count 1", "runs/sweeps/mnist-cd-vs-ct/results.csv"),  # Trial shortens it
    "cm-lightning sample --ckpt_path runs/mnist-ct --num_samples 64": Short(leaves="grid.png"),
    "cm-lightning sample --ckpt_path runs/mnist-ct --num_samples 1": Short(leaves="digits/000000_class3.png"),
    "cm-lightning edit inpaint": Short(leaves="inpainted.png"),
    "cm-lightning edit interpolate": Short("--num_samples 3", "moving.gif"),
    "cm-lightning search": Short("--num_samples 20 --tolerance 1", "search.png"),
    "cm-lightning sample --pipeline": Short(leaves="samples.png"),
    "cm-lightning fit --config experiments/lcm_lora/sd15.yaml": Short(
        _IMAGES, "runs/lcm-lora-sd15/version_0/export/pytorch_lora_weights.safetensors"
    ),
    "cm-lightning export": Short(leaves="exported/model_index.json"),
}
COMMANDS = shell_commands(README)

#: Options of ``fit`` that README names without a value, or that not every recipe has.
VALUES = {"--model.teacher": "runs/teacher", "--model.start_from": "runs/teacher"}
RECIPES = {"--model.teacher": "experiments/mnist/compare/cd.yaml"}
RECIPE = "experiments/mnist/ct.yaml"


def entries(command: str) -> list[str]:
    return [start for start in SHORTER if f"{command} ".startswith(f"{start} ")]


def shortening(command: str) -> Short:
    """The entry of a command; a command without one is not run, and fails its own test alone."""
    return next((SHORTER[start] for start in entries(command)), Short())


def options_in(page: str) -> list[tuple[str, str]]:
    """The options in the text of a page, each with its value, "" if it has none there."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]*--[^`\n]*)`", text)
    return [option for span in spans for option in re.findall(r"(--[\w.]+)(?:[= ]([^\s-]\S*))?", span)]


def options_of_commands() -> set[str]:
    parsers = (
        *(command.parser() for command in (sample, prompt, edit, search, serve)),
        *(command._parser() for command in (compare, export, sweep)),
    )
    return {*re.findall(r"--\w+", _HELP), *(name for parser in parsers for name in parser._option_string_actions)}


def run(words: Sequence[str]) -> None:
    """A command of the suite in this process, by the function that its console script calls."""
    name, *arguments = words
    assert name == "cm-lightning" or arguments[:2] == ["-m", "cm_lightning"], f"{name} is not a command of the suite"
    with patch.object(sys, "argv", ["cm-lightning", *(arguments if name == "cm-lightning" else arguments[2:])]):
        try:
            cm_lightning()
        except SystemExit as stop:
            if stop.code:
                pytest.fail(f"exit status {stop.code} of {shlex.join(words)}")


class Trial:
    """In place of the process of a sweep's trial: its command, shortened, in this process."""

    pid, returncode = 0, 0

    def __init__(self, command: Sequence[str], env: Mapping[str, str], **_: Any) -> None:
        assert command[0] == "/usr/bin/env"
        with patch.dict("os.environ", env):
            run([*command[1:], *shlex.split(_DIGITS), "--wandb=off"])

    def poll(self) -> int:
        return self.returncode


def write_images(folder: Path) -> None:
    """Photographs of two classes, each with a caption beside it."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 30, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        kind = ("cat", "dog")[number % 2]
        path = folder / kind / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        path.with_suffix(".txt").write_text(f"a photograph of a {kind}\n")


class Story:
    """The commands in order, each run once, when it or a later one is asked for."""

    def __init__(self) -> None:
        self.outputs: list[str] = []

    def up_to(self, number: int, capsys: pytest.CaptureFixture[str]) -> str:
        """Run what has not been run up to a command, and return what that command printed."""
        while len(self.outputs) <= number:
            command = COMMANDS[len(self.outputs)]
            self.outputs.append("")  # it is not run again if it fails
            capsys.readouterr()
            short = shortening(command)
            if short.leaves:
                run([*shlex.split(command), *shlex.split(short.options)])
            self.outputs[-1] = capsys.readouterr().out
        return self.outputs[number]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("readme")
    for name in ("experiments", "sweeps"):
        (folder / name).symlink_to(ROOT / name)
    write_images(folder / "path/to/images")
    half = np.zeros((28, 28), np.uint8)
    half[:, 14:] = 255
    Image.fromarray(half).save(folder / "mask.png")
    for model in ("path/to/model", "stable-diffusion-v1-5/stable-diffusion-v1-5"):
        tiny_sd().save_pretrained(folder / model)
    lora = folder / "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"
    lora.parent.mkdir(parents=True)
    write_lora(lora, {"to_q": (4, 4.0), "to_v": (4, 4.0)}, "sd15")
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(folder)
        patches.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # the statistics of few digits are not those of all
        few_digits(patches, 20)
        patches.setattr("cm_lightning.callbacks.prompt_grid._SHOWN", 10)
        processes = SimpleNamespace(Popen=Trial, TimeoutExpired=subprocess.TimeoutExpired)
        patches.setattr("cm_lightning.sweep.trials.subprocess", processes)
        yield Story()


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda number: COMMANDS[number][:70])
def test_the_commands_of_the_readme_run(number: int, story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(entries(COMMANDS[number])) == 1, f"not exactly once in the table SHORTER: {COMMANDS[number]}"
    story.up_to(number, capsys)
    assert Path(shortening(COMMANDS[number]).leaves).exists()


def test_each_entry_shortens_a_command() -> None:
    used = [start for command in COMMANDS for start in entries(command)]
    assert {*used} == {*SHORTER}
    assert {start for start in used if used.count(start) > 1} <= {
        "pip install"
    }  # a new command has an entry of its own
    assert {start for start in used if not SHORTER[start].leaves} == {"pip install", "pytest"}  # the others are run


def test_a_page_with_any_kind_of_block_has_its_commands_found() -> None:
    page = """
text

    a --b && c \\
        --d "e f"

```python
def not_a_command():
    return 1
```

```console
$ g
```
"""
    assert shell_commands(page) == ["a --b", 'c --d "e f"', "g"]


def test_the_extras_that_are_installed_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    asked = [name for command in COMMANDS if command.startswith("pip") for name in re.findall(r"\[(\w+)\]", command)]
    assert asked
    assert set(asked) <= set(re.findall(r"^(\w+) = \[", project, re.MULTILINE))


def test_every_option_that_the_readme_names_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    named, known = options_in(README), options_of_commands()
    of_fit: dict[str, list[str]] = {}
    for name, value in named:
        if name not in known:
            given = value or VALUES.get(name)
            of_fit.setdefault(RECIPES.get(name, RECIPE), []).append(f"{name}={given}" if given else name)
    assert len(named) > 20  # else they are not found
    assert "--wandb=online" in of_fit[RECIPE]
    for recipe, options in of_fit.items():
        run(["cm-lightning", "fit", f"--config={recipe}", *options, "--print_config"])


def test_the_python_that_follows_training_runs(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "load_module(" in block)
    (run_of_it,) = re.findall(r'load_module\("(.*?)"\)', code)
    (last,) = (
        n for n, command in enumerate(COMMANDS) if SHORTER[entries(command)[0]].leaves.startswith(f"{run_of_it}/")
    )
    story.up_to(last, capsys)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["images"].shape == (16, 1, 28, 28)


def test_the_end_of_a_distillation_says_how_to_draw(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    (number,) = (n for n, command in enumerate(COMMANDS) if "lcm_lora" in command)
    said = story.up_to(number, capsys)
    (line,) = (line for line in said.splitlines() if line.startswith("to draw: "))
    run([*shlex.split(line.removeprefix("to draw: ")), "--output=drawn.png"])
    assert Image.open("drawn.png").size == (16, 16)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200
