"""How a student says that it is drawn: by its folder, or by its published name; and what is said of other options."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.latent.few_step import FILE, FewStep, compare, only_one, published, read, told, unsaid

X0 = FewStep(1, "euler", "sample")
PUBLISHED = {
    "sdxl_lightning_1step_unet_x0.safetensors": X0,
    "sdxl_lightning_2step_unet.safetensors": FewStep(2),
    "sdxl_lightning_4step_unet.safetensors": FewStep(4),
    "sdxl_lightning_8step_unet.safetensors": FewStep(8),
    "sdxl_lightning_2step_lora.safetensors": FewStep(2),
    "sdxl_lightning_4step_lora.safetensors": FewStep(4),
    "sdxl_lightning_8step_lora.safetensors": FewStep(8),
    "SDXL-Lightning-4step-lora.fp16.safetensors": FewStep(4),
    "dmd2_sdxl_4step_unet.bin": FewStep(4, "lcm"),
    "dmd2_sdxl_4step_unet_fp16.bin": FewStep(4, "lcm"),
    "dmd2_sdxl_4step_unet_fp16.safetensors": FewStep(4, "lcm"),
    "dmd2_sdxl_4step_lora.safetensors": FewStep(4, "lcm"),
    "dmd2_sdxl_4step_lora_fp16.safetensors": FewStep(4, "lcm"),
    "dmd2_sdxl_1step_unet_fp16.bin": FewStep(1, "lcm", timesteps=(399,)),
    "Hyper-SDXL-2steps-lora.safetensors": FewStep(2, "trailing"),
    "Hyper-SDXL-8steps-lora.safetensors": FewStep(8, "trailing"),
    "Hyper-SD15-4steps-lora.safetensors": FewStep(4, "trailing"),
    "Hyper-SDXL-1step-Unet.safetensors": FewStep(1, "lcm", timesteps=(800,)),
}
OTHERS = [
    "pytorch_lora_weights.safetensors",
    "sdxl_lightning_3step_lora.safetensors",
    "sdxl_lightning_16step_lora.safetensors",
    "juggernaut_lightning_4step.safetensors",
    "Hyper-SDXL-8steps-CFG-lora.safetensors",
    "Hyper-SDXL-1step-lora.safetensors",
    "lcm-lora-sdxl.safetensors",
    "sdxl.safetensors",
]


@pytest.mark.parametrize(("name", "how"), PUBLISHED.items())
def test_a_published_name_tells(name: str, how: FewStep, tmp_path: Path) -> None:
    assert published(name) == told(f"OWNER/MODEL/{name}") == told(str(tmp_path / name)) == how
    (tmp_path / name).touch()
    assert told(str(tmp_path / name)) == told(str(tmp_path)) == how


@pytest.mark.parametrize("name", OTHERS)
def test_another_name_does_not(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert told(name) is told(str(tmp_path / name)) is told(str(tmp_path)) is None


@pytest.mark.parametrize("how", [FewStep(4), X0, FewStep(1, "lcm", timesteps=(399,)), FewStep(2, "trailing")])
def test_a_folder_tells_by_its_file(how: FewStep, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    how.write(tmp_path)
    places = [
        tmp_path,
        tmp_path / "unet",
        tmp_path / "pytorch_lora_weights.safetensors",
        tmp_path / "unet/x.safetensors",
    ]
    for place in places:
        if place.suffix:
            place.touch()
        assert told(str(place)) == how


def test_a_run_tells_by_its_export(tmp_path: Path) -> None:
    (tmp_path / "version_0/export").mkdir(parents=True)
    X0.write(tmp_path / "version_0/export")
    assert told(str(tmp_path)) == told(str(tmp_path / "version_0")) == X0


def test_a_published_name_decides_over_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    X0.write(tmp_path)
    (tmp_path / "sdxl_lightning_8step_lora.safetensors").touch()
    assert told(str(tmp_path / "sdxl_lightning_8step_lora.safetensors")) == FewStep(8)


def test_a_folder_of_several_published_files_does_not_tell(tmp_path: Path) -> None:
    for steps in (2, 4):
        (tmp_path / f"sdxl_lightning_{steps}step_lora.safetensors").touch()
    assert told(str(tmp_path)) is None


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "{}", '{"steps": 0}', '{"steps": 2.5}', '{"steps": 4, "scheduler": "own"}', '{"steps": 4, "x": 1}',
     '{"steps": 4, "prediction": "noise"}', '{"steps": 4, "timesteps": [399]}', '{"steps": 1, "timesteps": [-1]}',
     '{"steps": 1, "timesteps": 399}'],
)  # fmt: skip
def test_a_damaged_file_gets_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"few_step.json is damaged .*: remove it, and give --scheduler") as error:
        told(str(tmp_path))
    assert "\n" not in str(error.value)


def test_what_is_written_is_short(tmp_path: Path) -> None:
    FewStep(4).write(tmp_path)
    assert (tmp_path / FILE).read_text() == '{\n  "steps": 4,\n  "scheduler": "euler"\n}\n'
    assert read(tmp_path / FILE) == FewStep(4)


def test_a_part_decides_over_its_pipeline_and_two_students_are_refused(tmp_path: Path) -> None:
    FewStep(8).write(tmp_path)
    base, lora, unet = str(tmp_path), "a/b/sdxl_lightning_4step_lora.safetensors", "dmd2_sdxl_4step_unet.bin"
    assert only_one(base, []) == (base, FewStep(8))
    assert only_one(base, ["style.safetensors", lora]) == (lora, FewStep(4))
    assert only_one("base", ["style.safetensors"]) is None
    with pytest.raises(ConfigError, match=rf"{lora} and {unet} were both distilled for few steps: give one of them"):
        only_one("base", [lora, unet])


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_options_that_agree_need_no_line(guidance: float) -> None:
    assert compare("x", FewStep(4), 4, guidance, None) is compare("x", FewStep(4), 4, guidance, "euler") is None


@pytest.mark.parametrize(
    ("steps", "guidance", "given"),
    [(8, 1.0, "--steps 8"), (4, 1.5, "--guidance 1.5"), (1, 7.5, "--steps 1 and --guidance 7.5")],
)
def test_options_that_differ_are_refused_unless_the_scheduler_is_chosen_too(
    steps: int, guidance: float, given: str
) -> None:
    how = "x was distilled for 4 steps of EulerDiscreteScheduler with trailing timesteps, without guidance"
    with pytest.raises(ConfigError) as error:
        compare("x", FewStep(4), steps, guidance, None)
    assert str(error.value) == f"{how}: leave out {given}, or add --scheduler euler to draw it that way anyway"
    differ = "differ" if " and " in given else "differs"
    assert compare("x", FewStep(4), steps, guidance, "euler") == f"{how}, from which {given} {differ}"


@pytest.mark.parametrize("scheduler", ["own", "trailing", "lcm"])
def test_another_scheduler_is_named(scheduler: str) -> None:
    line = compare("x", FewStep(1, "euler", "sample"), 1, 0.0, scheduler)
    assert line is not None
    assert line.endswith(f", from which --scheduler {scheduler} differs")


def test_own_timesteps_are_passed_on_only_as_they_are_meant() -> None:
    how = FewStep(1, "lcm", timesteps=(399,))
    assert str(how) == "1 step of LCMScheduler with timestep 399, without guidance"
    assert how.options(1) == how.options(1, "lcm") == {"timesteps": [399]}
    assert how.options(2) == how.options(1, "euler") == FewStep(4).options(4) == {}


def test_a_part_that_does_not_say_how_it_is_drawn_is_named(tmp_path: Path) -> None:
    note = unsaid(["mine.safetensors"], 4, "lcm")
    assert note is not None
    assert note.startswith("mine.safetensors does not say how it is drawn, so --scheduler lcm --steps 4 is taken:")
    assert "for SDXL-Lightning give --scheduler euler" in note
    (tmp_path / "scheduler").mkdir()
    known = ["latent-consistency/lcm-lora-sdv1-5", str(tmp_path), "runs/lcm_kohya.safetensors"]
    assert [unsaid(parts, 4, "lcm") for parts in ([], *[[part] for part in known])] == [None] * 4


WRONG = [
    ({"steps": 0}, "FewStep: steps must be"),
    ({"steps": 4, "scheduler": "own"}, "scheduler must be one of euler, lcm, trailing, got 'own'"),
    ({"steps": 4, "prediction": "x"}, "prediction must be one of epsilon, v_prediction, sample, got 'x'"),
    ({"steps": 2, "timesteps": (399,)}, "2 steps need as many timesteps"),
    ({"steps": 1, "timesteps": (-1,)}, "each of timesteps must be a whole number of at least 0"),
]


@pytest.mark.parametrize(("arguments", "line"), WRONG)
def test_a_wrong_description_is_refused(arguments: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        FewStep(**arguments)  # type: ignore[arg-type]
