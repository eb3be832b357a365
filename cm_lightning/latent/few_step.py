"""How a distilled student is drawn: in how many steps, by which scheduler, and what its network predicts.

A student is good at the number of steps that it was distilled for, and with that scheduler alone. A folder that the
suite exports has these in ``few_step.json``. Published files have them in their names, so these are read from the name:

=============================================  ========================  =======================================
name                                           scheduler                 timesteps
=============================================  ========================  =======================================
``sdxl_lightning_Nstep_unet.safetensors``,     ``euler``                 trailing
``sdxl_lightning_Nstep_lora.safetensors``
``sdxl_lightning_1step_unet_x0.safetensors``   ``euler``                 999; the network predicts the image
``dmd2_sdxl_4step_unet_fp16.bin``,             ``lcm``                   999, 749, 499, 249
``dmd2_sdxl_4step_lora_fp16.safetensors``
``dmd2_sdxl_1step_unet_fp16.bin``              ``lcm``                   399
``Hyper-SDXL-Nsteps-lora.safetensors``         ``trailing``              trailing
=============================================  ========================  =======================================

None of them takes guidance: it is 0, which to diffusers is the same as 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from cm_lightning.domains import COUNT, NATURAL
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.files import replacing
from cm_lightning.run import find_export

if TYPE_CHECKING:
    from cm_lightning.core.latent import Prediction

#: ``euler`` is Euler's method from the last timestep, as for SDXL-Lightning; ``lcm`` is multistep consistency sampling;
#: ``trailing`` is DDIM from the last timestep; ``own`` is the scheduler that the model was saved with.
Scheduler: TypeAlias = Literal["euler", "lcm", "trailing", "own"]

#: The file of an exported folder that says how its student is drawn.
FILE = "few_step.json"

#: The class of each scheduler in diffusers.
CLASSES: dict[str, str] = {"euler": "EulerDiscreteScheduler", "lcm": "LCMScheduler", "trailing": "DDIMScheduler"}

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class FewStep:
    """How a student is drawn, without guidance.

    Args:
        steps: the number of steps that it was distilled for.
        scheduler: ``euler``, ``lcm`` or ``trailing``.
        prediction: what its network predicts, ``sample`` for a student that predicts the clean latent in one step; the
            same as its base if None.
        timesteps: its timesteps if they are not equally spaced from the last one on.

    Raises:
        ConfigError: a value is out of range, or there are not as many timesteps as steps.
    """

    steps: int
    scheduler: Scheduler = "euler"
    prediction: Prediction | None = None
    timesteps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        COUNT.check(self, steps=self.steps)
        if self.scheduler not in CLASSES:
            raise ConfigError(f"FewStep: scheduler must be one of {', '.join(CLASSES)}, got {self.scheduler!r}")
        if self.prediction not in (None, *_PREDICTIONS):
            raise ConfigError(f"FewStep: prediction must be one of {', '.join(_PREDICTIONS)}, got {self.prediction!r}")
        if self.timesteps:
            NATURAL.check_each(self, timesteps=self.timesteps)
            if len(self.timesteps) != self.steps:
                raise ConfigError(f"FewStep: {self.steps} steps need as many timesteps, got {list(self.timesteps)}")

    def __str__(self) -> str:
        spacing = "trailing timesteps"
        if self.timesteps:
            spacing = f"timestep{'s' * (self.steps > 1)} {', '.join(map(str, self.timesteps))}"
        return f"{_steps(self.steps)} of {CLASSES[self.scheduler]} with {spacing}, without guidance"

    def options(self, steps: int, scheduler: str | None = None) -> dict[str, list[int]]:
        """The argument of a pipeline that sets the student's timesteps, for those that its scheduler does not take.

        Args:
            steps: the number of steps.
            scheduler: the scheduler that the user chose; None if none was chosen.
        """
        own = steps == self.steps and scheduler in (None, self.scheduler)
        return {"timesteps": list(self.timesteps)} if own and self.timesteps else {}

    def departures(self, steps: int, guidance: float, scheduler: str | None = None) -> list[str]:
        """The options, as the user gave them, that differ from how the student is drawn."""
        given = {f"--steps {steps}": steps != self.steps, f"--guidance {guidance:g}": guidance > 1}
        given[f"--scheduler {scheduler}"] = scheduler not in (None, self.scheduler)
        return [option for option, differs in given.items() if differs]

    def write(self, folder: Path) -> None:
        """Write ``few_step.json`` to a folder."""
        content = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        with replacing(folder / FILE) as path:
            path.write_text(json.dumps(content, indent=2) + "\n")


def read(file: Path) -> FewStep:
    """Read ``few_step.json``.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        content = json.loads(file.read_text())
        return FewStep(**{**content, "timesteps": tuple(content.get("timesteps", ()))})
    except (OSError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}): remove it, and give --scheduler and --steps in its place"
        ) from error


def published(name: str) -> FewStep | None:
    """How a published file is drawn, by its name; None for a name that is not known."""
    name = name.lower().replace("-", "_")
    if found := re.search(r"sdxl_lightning_([1248])_?step", name):
        steps = int(found[1])  # the one-step network alone predicts the clean latent
        return FewStep(steps, "euler", "sample" if steps == 1 else None)
    if re.search(r"dmd2_sdxl_1_?step", name):
        return FewStep(1, "lcm", timesteps=(399,))
    if re.search(r"dmd2_sdxl_4_?step", name):
        return FewStep(4, "lcm")
    if re.search(r"hyper_sdxl_1_?step_unet", name):
        return FewStep(1, "lcm", timesteps=(800,))
    if found := re.search(r"hyper_sd(?:xl|15)_([248])_?steps?_lora", name):
        return FewStep(int(found[1]), "trailing")
    return None


def told(path: str) -> FewStep | None:
    """How a file or folder says that it is drawn, by ``few_step.json`` or a published name; None if it does not.

    Args:
        path: a file of weights, a folder of them, a run, or a name on the hub, OWNER/MODEL/FILE.

    Raises:
        CheckpointError: its ``few_step.json`` is damaged.
    """
    place = Path(find_export(path))
    if not place.is_dir() and (how := published(place.name)):
        return how
    folder = place if place.is_dir() else place.parent
    homes = [folder, folder.parent] if folder.name == "unet" else [folder]
    for home in homes if place.exists() else ():
        if (home / FILE).is_file():
            return read(home / FILE)
    files = [file.name for file in place.iterdir() if file.suffix in _WEIGHTS] if place.is_dir() else []
    return published(files[0]) if len(files) == 1 else None


def only_one(pipeline: str, parts: Sequence[str]) -> tuple[str, FewStep] | None:
    """The model among a pipeline and the parts added to it that says how it is drawn, and what it says.

    A part decides over its pipeline, which may itself be the student of an earlier stage.

    Raises:
        ConfigError: several parts are students.
    """
    found = [(part, how) for part in parts if (how := told(part))]
    if len(found) > 1:
        raise ConfigError(f"{found[0][0]} and {found[1][0]} were both distilled for few steps: give one of them")
    if found:
        return found[0]
    how = told(pipeline)
    return (pipeline, how) if how else None


def compare(source: str, how: FewStep, steps: int, guidance: float, scheduler: str | None) -> str | None:
    """Compare options with how a student is drawn: None if they agree, and else one line that names the others.

    Args:
        source: the student's file or folder.
        how: how it is drawn.
        steps: the number of steps.
        guidance: guidance_scale; 0 and 1 are both none.
        scheduler: the scheduler that the user chose, None if none was chosen.

    Raises:
        ConfigError: steps or guidance differ and no scheduler was chosen, so that they were probably not meant.
    """
    differing = how.departures(steps, guidance, scheduler)
    if not differing:
        return None
    line, given = f"{source} was distilled for {how}", " and ".join(differing)
    if scheduler is None:
        raise ConfigError(f"{line}: leave out {given}, or add --scheduler {how.scheduler} to draw it that way anyway")
    return f"{line}, from which {given} differ{'s' * (len(differing) == 1)}"


def unsaid(parts: Sequence[str], steps: int | None, scheduler: str) -> str | None:
    """One line on parts of a pipeline that do not say how they are drawn; None for LCM, which needs no more.

    Args:
        parts: LoRA, or a whole UNet.
        steps: the number of steps that is taken; None if there are several.
        scheduler: the scheduler that is taken.
    """
    if not parts or any(_is_lcm(part) for part in parts):
        return None
    taken = f"--scheduler {scheduler}" + (f" --steps {steps}" if steps else "")
    return (
        f"{parts[0]} does not say how it is drawn, so {taken} is taken: for SDXL-Lightning give --scheduler euler, for "
        "DMD2 --scheduler lcm, each with the steps that it was distilled for"
    )


def _is_lcm(part: str) -> bool:
    """Whether a part is a latent consistency model of the suite, by its scheduler's folder, or of others, by name."""
    place = Path(find_export(part))
    folder = place if place.is_dir() else place.parent
    return "lcm" in Path(part).name.lower() or (place.exists() and (folder / "scheduler").is_dir())


def _steps(n: int) -> str:
    return f"{n} step{'s' * (n > 1)}"
