"""Small students in the formats of SDXL-Lightning and DMD2 are loaded to the bit, and drawn as by plain diffusers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from peft.utils import get_peft_model_state_dict

from cm_lightning.commands.evaluate import _measure_model, _Subject, make_parser
from cm_lightning.commands.named_model import NamedModel
from cm_lightning.commands.sample import main as sample
from cm_lightning.core.few_step import few_step_sample, trailing_timesteps
from cm_lightning.core.latent import lcm_sample
from cm_lightning.core.noise import generators
from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.hub import file_on_hub
from cm_lightning.latent import kohya
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.draw import draw
from cm_lightning.latent.exported import export_student, student_card
from cm_lightning.latent.few_step import FewStep, published, told
from cm_lightning.latent.lora_files import load_lora
from cm_lightning.latent.pipelines import few_step_pipeline, split_parts
from cm_lightning.latent.schedulers import few_step_scheduler
from cm_lightning.latent.unet_files import is_unet, load_unet
from tests.latent.test_lora import make, output, same, trained, tuned_once

pytestmark = [
    pytest.mark.filterwarnings("error::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
]

DOWN = {"A": "down", "B": "up"}
#: The styles of keys of published LoRA: Kohya's with the layers of diffusers (DMD2), and of Stability's code.
STYLES = {
    "kohya": lambda layer, half: f"{kohya.diffusers_key(layer)}.lora_{DOWN[half]}.weight",
    "kohya, Stability's layers": lambda layer, half: f"{kohya.stability_key(layer)}.lora_{DOWN[half]}.weight",
    "diffusers": lambda layer, half: f"unet.{layer}.lora_{half}.weight",
    "diffusers, old": lambda layer, half: f"unet.{layer}.lora.{DOWN[half]}.weight",
    "peft": lambda layer, half: f"base_model.model.{layer}.lora_{half}.weight",
}
LIGHTNING = "sdxl_lightning_4step_lora.safetensors"


def lora_tensors(pipe: Any, style: str) -> dict[str, Tensor]:
    """The adapter of a pipeline, with an alpha for each layer as Kohya's files have."""
    found = {}
    for name, tensor in get_peft_model_state_dict(pipe.unet, adapter_name="lcm").items():
        layer, half = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", name).groups()  # type: ignore[union-attr]
        key = STYLES[style](layer, half)
        found[key] = tensor.contiguous()
        if "kohya" in style:
            found[key.partition(".")[0] + ".alpha"] = torch.tensor(float(pipe.unet.peft_config["lcm"].lora_alpha))
    return found


def other_unet(kind: str = "sdxl") -> Any:
    """A pipeline whose UNet differs from the base's."""
    pipe = make(kind)
    torch.manual_seed(9)
    for parameter in pipe.unet.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return pipe


@pytest.fixture(scope="module")
def student() -> Any:
    return other_unet()


@pytest.fixture(scope="module")
def adapted() -> Any:
    return tuned_once("sdxl", rank=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base") / "sdxl"
    make("sdxl").save_pretrained(folder)
    return str(folder)


def image(pipe: Any, steps: int, **options: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    given = {"guidance_scale": 0, "generator": generators(5, range(2)), "output_type": "pt", **options}
    made: Tensor = pipe(["a cat", "dogs"], num_inference_steps=steps, **given).images
    return made


# loading


@pytest.mark.parametrize(("style", "alpha"), [*((style, 4) for style in STYLES), ("kohya", 2)])
def test_a_published_lora_gives_the_same_network_to_the_bit(style: str, alpha: int, tmp_path: Path) -> None:
    original, pipe = tuned_once("sdxl", rank=4, alpha=alpha), make("sdxl")
    save_file(lora_tensors(original, style), tmp_path / LIGHTNING)
    before = output(pipe)
    load_lora(pipe, tmp_path / LIGHTNING)
    assert same(output(pipe), output(original))
    assert not same(output(pipe), before)


@pytest.mark.parametrize("name", ["sdxl_lightning_4step_unet.safetensors", "dmd2_sdxl_4step_unet_fp16.bin"])
@pytest.mark.parametrize("prefix", ["", "unet.", "module."])
def test_a_published_unet_gives_the_same_network_to_the_bit(
    name: str, prefix: str, student: Any, tmp_path: Path
) -> None:
    state = {prefix + key: tensor for key, tensor in student.unet.state_dict().items()}
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    pipe = make("sdxl")
    assert is_unet(tmp_path / name)
    load_unet(pipe, tmp_path / name)
    assert same(output(pipe), output(student))


def test_a_half_precision_file_is_read_in_the_pipelines_precision(student: Any, tmp_path: Path) -> None:
    halves = {key: tensor.half() for key, tensor in student.unet.state_dict().items()}
    torch.save({"state_dict": halves}, tmp_path / "dmd2_sdxl_1step_unet_fp16.bin")
    pipe, expected = make("sdxl"), make("sdxl")
    load_unet(pipe, tmp_path / "dmd2_sdxl_1step_unet_fp16.bin")
    expected.unet.load_state_dict({key: tensor.float() for key, tensor in halves.items()})
    assert pipe.unet.dtype == torch.float32
    assert same(output(pipe), output(expected))


@pytest.mark.parametrize("place", ["", "unet"])
def test_a_folder_of_diffusers_is_read(place: str, student: Any, tmp_path: Path) -> None:
    student.unet.save_pretrained(tmp_path / "unet")
    pipe = make("sdxl")
    assert is_unet(tmp_path / place)
    load_unet(pipe, tmp_path / place)
    assert same(output(pipe), output(student))


class Object:
    """An object that a pickle could hold."""


BAD: dict[str, tuple[Any, str]] = {
    "a LoRA": ({"unet.mid_block.x.lora_A.weight": torch.zeros(1)}, "is a LoRA: give it by --lora"),
    "all in one": (
        {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1), "conditioner.x": torch.zeros(1)},
        "is a checkpoint of a whole model, for ComfyUI: give the file of its UNet alone, ..._unet.safetensors",
    ),
    "cut": ({"conv_in.weight": torch.zeros(8, 4, 3, 3)}, "is not a UNet for this kind of model: it lacks "),
    "nothing": ({}, "is not a state dict of a UNet"),
    "a list": ([torch.zeros(1)], "is not a state dict of a UNet"),
    "numbers": ({"conv_in.weight": 3}, "is not a state dict of a UNet"),
    "an object": ({"x": Object()}, "is damaged, or does not hold tensors alone"),
}


@pytest.mark.parametrize(("content", "line"), BAD.values(), ids=BAD)
def test_what_is_not_a_unet_is_refused_in_a_line(content: Any, line: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.bin")
    pipe = make("sdxl")
    before = output(pipe)
    with pytest.raises(CheckpointError) as error:
        load_unet(pipe, tmp_path / "x.bin")
    assert str(error.value).startswith(f"{tmp_path / 'x.bin'} {line}")
    assert "\n" not in str(error.value)
    assert same(output(pipe), before)


def test_a_unet_of_another_kind_is_refused(student: Any, tmp_path: Path) -> None:
    save_file(student.unet.state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x.safetensors is not a UNet for this kind of model: it lacks down_"):
        load_unet(make("sd15"), tmp_path / "x.safetensors")
    wide = {**student.unet.state_dict(), "conv_in.weight": torch.zeros(16, 4, 3, 3)}
    save_file(wide, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=r"its conv_in.weight of shape \(16, 4, 3, 3\) does not fit \(8, 4, 3, 3\)"
    ):
        load_unet(make("sdxl"), tmp_path / "x.safetensors")
    student.unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(
        CheckpointError, match="unet is not a UNet for this kind of model: its cross_attention_dim is 32"
    ):
        load_unet(make("sd15"), tmp_path)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="unet cannot be loaded as a UNet"):
        load_unet(make("sdxl"), tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no UNet at .*nowhere: give a folder of diffusers, or a file"):
        load_unet(make("sdxl"), tmp_path / "nowhere")


def test_files_are_told_apart_by_what_they_hold(adapted: Any, student: Any, tmp_path: Path) -> None:
    lora, unet, style = (str(tmp_path / name) for name in ("a.bin", "b.safetensors", "c.safetensors"))
    torch.save(lora_tensors(adapted, "kohya"), lora)
    save_file(student.unet.state_dict(), unet)
    save_file(lora_tensors(adapted, "diffusers"), style)
    assert split_parts([lora, unet, style], "--model x:") == ([lora, style], unet)
    assert split_parts([lora], "--model x:") == ([lora], None)
    Path(unet + "2").write_bytes(Path(unet).read_bytes())
    with pytest.raises(ConfigError, match=rf"--model x: {unet} and {unet}2 are both whole UNets"):
        split_parts([unet, unet + "2"], "--model x:")
    Path(style).write_bytes(b"\xff" * 8 + b"{cut")
    with pytest.raises(CheckpointError, match=r"c.safetensors is damaged"):
        split_parts([style], "--model x:")


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors",
         ("ByteDance/SDXL-Lightning", "sdxl_lightning_4step_lora.safetensors")),
        ("tianweiy/DMD2/model/sdxl/x/pytorch_model.bin", ("tianweiy/DMD2", "model/sdxl/x/pytorch_model.bin")),
        ("ByteDance/SDXL-Lightning", None),
        ("./a/b/c.safetensors", None),
        ("/a/b/c.safetensors", None),
        ("tests/latent/c.safetensors", None),
        ("a/b/c", None),
    ],
)  # fmt: skip
def test_a_file_on_the_hub(path: str, parts: tuple[str, str] | None, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    assert file_on_hub(path) == parts


# drawing


def plain(unet: Any, kind: Any, **changes: Any) -> Any:
    """What a user of diffusers builds by hand."""
    pipe = make("sdxl")
    pipe.unet.load_state_dict(unet.state_dict())
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes)
    return pipe


TRAILING = {"timestep_spacing": "trailing"}
DRAWN: dict[str, tuple[Any, dict[str, Any], int, dict[str, Any]]] = {
    "sdxl_lightning_1step_unet_x0.safetensors": (
        EulerDiscreteScheduler, {**TRAILING, "prediction_type": "sample"}, 1, {},
    ),
    "sdxl_lightning_2step_unet.safetensors": (EulerDiscreteScheduler, TRAILING, 2, {}),
    "sdxl_lightning_4step_unet.safetensors": (EulerDiscreteScheduler, TRAILING, 4, {}),
    "sdxl_lightning_8step_unet.safetensors": (EulerDiscreteScheduler, TRAILING, 8, {}),
    "dmd2_sdxl_4step_unet_fp16.safetensors": (LCMScheduler, {}, 4, {"timesteps": [999, 749, 499, 249]}),
    "dmd2_sdxl_1step_unet_fp16.safetensors": (LCMScheduler, {}, 1, {"timesteps": [399]}),
    "Hyper-SDXL-1step-Unet.safetensors": (LCMScheduler, {}, 1, {"timesteps": [800]}),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_a_published_unet_is_drawn_as_by_plain_diffusers(name: str, student: Any, base: str, tmp_path: Path) -> None:
    save_file(student.unet.state_dict(), tmp_path / name)
    how = told(str(tmp_path / name))
    assert how is not None
    kind, changes, steps, options = DRAWN[name]
    assert how.steps == steps
    ours = image(few_step_pipeline(base, unet=str(tmp_path / name), how=how), steps, **how.options(steps))
    theirs = image(plain(student.unet, kind, **changes), steps, **options)
    assert theirs.std() > 0.05
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "kind"), [(LIGHTNING, EulerDiscreteScheduler), ("Hyper-SDXL-4steps-lora.safetensors", DDIMScheduler)]
)
def test_a_published_lora_is_drawn_as_by_plain_diffusers(
    name: str, kind: Any, adapted: Any, base: str, tmp_path: Path
) -> None:
    save_file(lora_tensors(adapted, "kohya"), tmp_path / name)
    how = told(str(tmp_path / name))
    ours = image(few_step_pipeline(base, {str(tmp_path / name): 1.0}, how=how), 4)
    theirs = make("sdxl")
    theirs.load_lora_weights(tmp_path, weight_name=name)
    clip = {"clip_sample": False} if kind is DDIMScheduler else {}  # the configuration of SDXL itself says so
    theirs.scheduler = kind.from_config(theirs.scheduler.config, **TRAILING, **clip)
    assert (ours - image(theirs, 4)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("how", [FewStep(4), FewStep(1, "euler", "sample"), FewStep(4, "lcm")], ids=str)
def test_the_suites_sampler_draws_what_the_scheduler_draws(how: FewStep, kind: str) -> None:
    pipe = make(kind)
    pipe.scheduler = few_step_scheduler(how, pipe.scheduler.config)
    model = TextToImageBase(pipe)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"latents": z, "output_type": "latent", "height": 16, "width": 16}
    noise = torch.Generator().manual_seed(2)
    theirs = image(pipe, how.steps, **{**options, "generator": noise})
    c = model.encode_prompts(["a cat", "dogs"], (16, 16))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return model.schedule.clean(model.output(model.unet, x, t, c), x, t)

    timesteps = trailing_timesteps(how.steps)
    with torch.no_grad():
        if how.scheduler == "lcm":
            noise.manual_seed(2)
            ours = lcm_sample(predict, model.schedule, z, timesteps, lambda x: torch.randn(x.shape, generator=noise))
        else:
            ours = few_step_sample(predict, model.schedule, z, timesteps)
    assert ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max() < 1e-4


def test_an_lcm_scheduler_for_four_steps_has_the_published_timesteps() -> None:
    scheduler = few_step_scheduler(FewStep(4, "lcm"), make("sdxl").scheduler.config)
    for steps, timesteps in ((4, [999, 749, 499, 249]), (2, [999, 499]), (1, [999])):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == timesteps


def test_a_bases_own_noise_levels_are_not_taken_over() -> None:
    config = EulerDiscreteScheduler.from_config(make("sdxl").scheduler.config, use_karras_sigmas=True).config
    scheduler = few_step_scheduler(FewStep(4), config)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


@pytest.mark.parametrize("scheduler", ["own", "trailing", "lcm", "euler"])
def test_what_a_network_predicts_holds_for_every_scheduler(scheduler: Any, base: str) -> None:
    how = published("sdxl_lightning_1step_unet_x0.safetensors")
    pipe = few_step_pipeline(base, scheduler=scheduler, how=how)
    assert pipe.scheduler.config.prediction_type == "sample"
    spacing = {"own": "leading", "lcm": "leading"}.get(scheduler, "trailing")
    assert pipe.scheduler.config.timestep_spacing == spacing


# commands


def command(base: str, tmp_path: Path, *options: str) -> None:
    sample([f"--pipeline={base}", "--prompt=a cat", "--device=cpu", f"--output={tmp_path}/x.png", *options])


def test_sample_takes_what_the_file_tells(base: str, adapted: Any, tmp_path: Path, capsys: Any) -> None:
    save_file(lora_tensors(adapted, "kohya"), tmp_path / LIGHTNING)
    command(base, tmp_path, f"--lora={tmp_path / LIGHTNING}", "--guidance=0")
    said = capsys.readouterr()
    assert said.out == f"1 images of 4 evaluations each: {tmp_path}/x.png\n"
    assert said.err == ""
    (tmp_path / LIGHTNING).rename(tmp_path / "mine.safetensors")
    command(base, tmp_path, f"--lora={tmp_path}/mine.safetensors")
    assert capsys.readouterr().err.startswith(f"note: {tmp_path}/mine.safetensors does not say how it is drawn, so ")
    command(base, tmp_path, f"--lora={tmp_path}/mine.safetensors", "--scheduler=euler")
    assert capsys.readouterr().err == ""


def test_sample_takes_a_unet(base: str, student: Any, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "dmd2_sdxl_1step_unet_fp16.bin"
    torch.save(student.unet.state_dict(), file)
    command(base, tmp_path, f"--unet={file}")
    assert capsys.readouterr().out == f"1 images of 1 evaluations each: {tmp_path}/x.png\n"
    command(base, tmp_path, f"--unet={file}", "--steps=2", "--scheduler=own")
    said = capsys.readouterr().err
    assert said == (
        f"note: {file} was distilled for 1 step of LCMScheduler with timestep 399, without guidance, from which "
        "--steps 2 and --scheduler own differ\n"
    )


WRONG_USE = {
    "steps": (["--steps=8"], "leave out --steps 8, or add --scheduler euler"),
    "guidance": (["--guidance=5"], "leave out --guidance 5, or add --scheduler euler"),
    "both": (["--steps=1", "--guidance=1.5"], "leave out --steps 1 and --guidance 1.5, or add --scheduler euler"),
}


@pytest.mark.parametrize(("options", "line"), WRONG_USE.values(), ids=WRONG_USE)
@pytest.mark.parametrize("option", ["lora", "unet"])
def test_wrong_use_is_refused_before_anything_is_read(
    options: list[str], line: str, option: str, tmp_path: Path
) -> None:
    file = f"SDXL/Lightning/sdxl_lightning_4step_{option}.safetensors"
    with pytest.raises(ConfigError, match=f"{file} was distilled for 4 steps of EulerDiscreteScheduler .*: {line}"):
        command("./nowhere", tmp_path, f"--{option}={file}", *options)


def test_a_file_given_by_the_wrong_option_is_named(base: str, adapted: Any, student: Any, tmp_path: Path) -> None:
    save_file(student.unet.state_dict(), tmp_path / "unet.safetensors")
    save_file(lora_tensors(adapted, "kohya"), tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"unet.safetensors is a whole UNet, not a LoRA: give it by --unet"):
        few_step_pipeline(base, {str(tmp_path / "unet.safetensors"): 1.0})
    with pytest.raises(CheckpointError, match=r"lora.safetensors is a LoRA: give it by --lora"):
        few_step_pipeline(base, unet=str(tmp_path / "lora.safetensors"))


SETTINGS: dict[str, tuple[Any, list[tuple[int, float]], str]] = {
    "by itself": ((None, None, None), [(4, 1.0)], ""),
    "its own": (([4], [0.0], None), [(4, 0.0)], ""),
    "of a grid": (
        ([1, 4], [1.0, 2.0], None),
        [(4, 1.0)],
        "the other cells are left out, and --scheduler euler measures",
    ),
    "all the same": (([1, 4], None, "euler"), [(1, 1.0), (4, 1.0)], "from which --steps 1 differs"),
    "another scheduler": ((None, None, "own"), [(4, 1.0)], "from which --scheduler own differs"),
}


@pytest.mark.parametrize(("given", "measured", "note"), SETTINGS.values(), ids=SETTINGS)
def test_evaluate_measures_a_student_as_it_is_drawn(given: Any, measured: Any, note: str, capsys: Any) -> None:
    model = NamedModel.parse(f"x=base/model+ByteDance/SDXL-Lightning/{LIGHTNING}")
    model.require_files()
    assert model.settings(*given) == measured
    said = capsys.readouterr().err
    assert note in said
    assert said.count("\n") == bool(note)
    assert not note or said.startswith("note: --model x: ByteDance")


def test_evaluate_draws_a_unet_at_its_timesteps(base: str, student: Any, tmp_path: Path) -> None:
    file = tmp_path / "dmd2_sdxl_1step_unet_fp16.safetensors"
    save_file(student.unet.state_dict(), file)
    seen: list[Tensor] = []

    def scores(pixels: Tensor, *_: Any) -> dict[str, float]:
        seen.append(pixels)
        return {"mean": 0.0}

    model = NamedModel.parse(f"x={base}+{file}")
    args = make_parser().parse_args([f"--output={tmp_path}/out", "--device=cpu", "--num_samples=2"])
    subject = _Subject(["a cat", "dogs"], None, scores, None)  # type: ignore[arg-type]
    (cell,) = _measure_model(args, model, model.settings(None, None, None), subject)
    assert (cell.steps, cell.guidance, cell.nfe) == (1, 1.0, 1)
    expected = draw(plain(student.unet, LCMScheduler), ["a cat", "dogs"], 1, 0.0, timesteps=[399])
    assert (seen[0].int() - expected.int()).abs().max() <= 1


def test_evaluate_refuses_a_grid_without_the_students_steps() -> None:
    model = NamedModel.parse(f"x=base/model+{LIGHTNING}")
    with pytest.raises(ConfigError, match=r"distilled for 4 steps .*: leave out --steps 2, or add --scheduler euler"):
        model.settings([2, 8], [1.0], None)


def test_evaluate_measures_other_models_as_before(capsys: Any) -> None:
    grid = NamedModel.parse("x=base/model").settings(None, None, None)
    assert grid == [(steps, guidance) for steps in (1, 2, 4, 8) for guidance in (1.0, 1.5, 2.0, 4.0)]
    assert NamedModel.parse("x=base/model+a/lcm-lora").settings([2], [1.0], None) == [(2, 1.0)]
    assert capsys.readouterr().err == ""
    NamedModel.parse("x=base/model+mine.safetensors").settings([2], [1.0], None)
    assert capsys.readouterr().err.startswith("note: --model x: mine.safetensors does not say how it is drawn")


# export


@pytest.mark.parametrize(
    ("part", "how"),
    [
        ("pipeline", FewStep(4)),
        ("pipeline", FewStep(1, "euler", "sample")),
        ("pipeline", FewStep(1, "lcm", timesteps=(399,))),
        ("unet", FewStep(1, "euler", "sample")),
        ("lora", FewStep(1, "lcm", timesteps=(399,))),
    ],
    ids=str,
)
def test_the_cards_own_lines_draw_the_students_images(part: Any, how: FewStep, base: str, tmp_path: Path) -> None:
    """The Python of the card, as it stands but for the folders and a seed, against the pipeline before the export."""
    pipe = trained("sdxl", rank=4) if part == "lora" else other_unet()
    export_student(tmp_path, pipe, how, part, "Lightning", base)
    pipe.scheduler = few_step_scheduler(how, make("sdxl").scheduler.config)
    expected = image(pipe, how.steps, **how.options(how.steps))
    card = (tmp_path / "README.md").read_text()
    code = re.search(r"```python\n(.+)```", card, re.DOTALL)[1]  # type: ignore[index]
    code = code.replace("THIS FOLDER", str(tmp_path)).replace('pipe("PROMPT", ', "image(pipe, ")
    code = code.replace("num_inference_steps=", "steps=").replace(".images[0]", "")
    space: dict[str, Any] = {"image": image}
    exec(code, space)
    assert (space["image"] - expected).abs().max() < 1e-4
    assert told(str(tmp_path)) == how


@pytest.mark.parametrize("part", ["pipeline", "unet", "lora"])
def test_an_export_is_drawn_by_the_suite_without_options(part: str, base: str, tmp_path: Path) -> None:
    how = FewStep(1, "euler", "sample")
    pipe = trained("sdxl", rank=4) if part == "lora" else other_unet()
    export_student(tmp_path, pipe, how, part, "Lightning", base)  # type: ignore[arg-type]
    expected = draw(pipe, ["a cat"], 1, 0.0)
    parts = {
        "pipeline": (str(tmp_path), {}, None),
        "unet": (base, {}, str(tmp_path)),
        "lora": (base, [str(tmp_path)], None),
    }
    path, loras, unet = parts[part]
    again = few_step_pipeline(path, dict.fromkeys(loras, 1.0), unet=unet, how=told(str(tmp_path)))
    assert isinstance(again.scheduler, EulerDiscreteScheduler)
    assert (draw(again, ["a cat"], 1, 0.0).int() - expected.int()).abs().max() <= 1


def test_a_pipeline_that_was_saved_with_trailing_euler_keeps_it(base: str, tmp_path: Path) -> None:
    pipe = make("sdxl")
    pipe.scheduler = few_step_scheduler(FewStep(1, "euler", "sample"), pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    kept = few_step_pipeline(str(tmp_path)).scheduler
    assert isinstance(kept, EulerDiscreteScheduler)
    assert (kept.config.prediction_type, kept.config.timestep_spacing) == ("sample", "trailing")
    assert isinstance(few_step_pipeline(base).scheduler, DDIMScheduler)


def test_the_card_says_steps_scheduler_and_guidance() -> None:
    card = student_card(FewStep(4), "lora", "SDXL-Lightning", "stabilityai/stable-diffusion-xl-base-1.0")
    assert card.startswith("---\nlibrary_name: diffusers\npipeline_tag: text-to-image\nbase_model: stabilityai/")
    text = " ".join(card.split())
    assert "drawn with 4 steps of EulerDiscreteScheduler with trailing timesteps, without guidance" in text
    assert "set `guidance_scale` to 0" in text
    assert "num_inference_steps=4, guidance_scale=0)" in text
    one = " ".join(student_card(FewStep(1, "euler", "sample"), "unet", "x").split())
    assert "Its network predicts the clean latent, not the noise." in one
    assert "was distilled for 1 step. " in one
    assert "timesteps=[399]" in student_card(FewStep(1, "lcm", timesteps=(399,)), "pipeline", "x")
