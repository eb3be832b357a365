from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from diffusers import LCMScheduler, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict

from cm_lightning.errors import CheckpointError, ConfigError
from cm_lightning.latent import kohya
from cm_lightning.latent.lora import TARGETS, adapter_names, adapter_off, add_lora, combine, layers, merge
from cm_lightning.latent.lora_files import WEIGHTS, load_lora, save_kohya, save_lora
from tests.latent.tiny import LENGTH, SDXL_BLOCKS, WIDTH, tiny_sd, tiny_sdxl

pytestmark = [
    pytest.mark.filterwarnings("error::RuntimeWarning"),  # diffusers drops keys with no more than that
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]

MAKERS: dict[str, Callable[[], Any]] = {"sd15": tiny_sd, "sd21": lambda: tiny_sd(v_prediction=True), "sdxl": tiny_sdxl}
FILES = {"own": WEIGHTS, "kohya": "lcm_kohya.safetensors"}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def make(kind: str) -> Any:
    pipe = MAKERS[kind]()
    pipe.unet.requires_grad_(False)  # torch multiplies by another path where a weight needs a gradient
    return pipe


def inputs(pipe: Any) -> dict[str, Any]:
    """Two noisy latents with their noise levels and texts."""
    generator = torch.Generator().manual_seed(3)
    sdxl = hasattr(pipe, "text_encoder_2")
    made: dict[str, Any] = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([499, 19]),
        "encoder_hidden_states": torch.randn(2, LENGTH, WIDTH * (2 if sdxl else 1), generator=generator),
    }
    if sdxl:
        pooled, sizes = torch.randn(2, 8, generator=generator), torch.full((2, 6), 16.0)
        made["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    return made


@torch.no_grad()
def output(pipe: Any) -> Tensor:
    made: Tensor = pipe.unet(**inputs(pipe)).sample
    return made


def picture(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    options = {"num_inference_steps": 4, "guidance_scale": 1.5, "height": 16, "width": 16, "output_type": "pt"}
    made: Tensor = pipe("a cat", generator=generator, **options).images
    return made


def trained(kind: str, **options: Any) -> Any:
    """A pipeline with an adapter that has an effect in every layer."""
    pipe = make(kind)
    for parameter in add_lora(pipe.unet, **{"rank": 4, **options}).values():
        nn.init.normal_(parameter, std=0.2)
    return pipe


#: The same pipeline for all tests that do not change it: to put an adapter into each layer takes long.
tuned_once = cache(trained)


def same(a: Tensor, b: Tensor) -> bool:
    return (a - b).abs().max().item() == 0.0


def by_hand(kind: str, weighted: Mapping[Path, float]) -> Tensor:
    """The output after adding the tensors of a Kohya file with diffusers' names to the weights."""
    pipe = make(kind)
    for file, weight in weighted.items():
        tensors = {key: tensor.float() for key, tensor in load_file(file).items()}
        for name, layer in layers(pipe.unet).items():
            key = kohya.diffusers_key(name)
            if f"{key}.alpha" in tensors:
                up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
                scale = weight * tensors[f"{key}.alpha"].item() / len(down)
                layer.weight += scale * (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
    return output(pipe)


def write(file: Path, pairs: Mapping[str, tuple[int, float]], kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a file as published, with diffusers' names; rank and alpha depend on the end of a layer's name."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, layer in layers(make(kind).unet).items():
        for target, (rank, alpha) in pairs.items():
            if f".{name}".endswith(f".{target}"):
                key, (out, *rest) = kohya.diffusers_key(name), layer.weight.shape
                down = torch.randn(rank, *rest, generator=generator)
                up = torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator)
                tensors |= {f"{key}.lora_down.weight": 0.2 * down, f"{key}.lora_up.weight": 0.2 * up}
                tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, file)
    return file


@pytest.mark.parametrize("kind", MAKERS)
def test_a_new_adapter_changes_nothing_and_alone_is_trained(kind: str) -> None:
    pipe = make(kind)
    before = output(pipe)
    trainable = add_lora(pipe.unet, rank=4)
    assert same(output(pipe), before)
    assert {name for name, p in pipe.unet.named_parameters() if p.requires_grad} == set(trainable)
    adapted = [name for name in layers(pipe.unet) if any(f".{name}".endswith(f".{target}") for target in TARGETS)]
    assert len(trainable) == 2 * len(adapted)
    for target in TARGETS:
        assert any(f".{target}.lora_A.lcm.weight" in name for name in trainable)
    pipe.unet(**inputs(pipe)).sample.square().mean().backward()
    assert all(p.grad is not None for p in trainable.values())


def test_the_published_size_of_sdxl() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            **{**SDXL_BLOCKS, "transformer_layers_per_block": (1, 2, 10)},
            layers_per_block=2,
            block_out_channels=(320, 640, 1280),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        trainable = add_lora(unet)
    assert len(trainable) == 2 * 788
    assert sum(p.numel() for p in trainable.values()) == 196_751_360
    assert len({kohya.stability_key(name) for name in layers(unet)}) == len(layers(unet))


def test_an_adapter_is_float32_on_a_half_precision_unet(tmp_path: Path) -> None:
    pipe = make("sd15")
    pipe.unet.to(torch.bfloat16)
    trainable = add_lora(pipe.unet, rank=2)
    for parameter in trainable.values():
        nn.init.normal_(parameter, std=0.2)
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs(pipe).items()}
    with torch.no_grad():
        assert pipe.unet(**half).sample.dtype == torch.bfloat16
    file = save_lora(pipe.unet, type(pipe), tmp_path)
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}


def test_what_cannot_be_added_is_refused() -> None:
    pipe = make("sd15")
    with pytest.raises(ConfigError, match="rank 0"):
        add_lora(pipe.unet, rank=0)
    with pytest.raises(ConfigError, match="no layer of the UNet is called query"):
        add_lora(pipe.unet, targets=("query",))
    add_lora(pipe.unet, rank=2)
    with pytest.raises(ConfigError, match="already has an adapter 'lcm'"):
        add_lora(pipe.unet, rank=2)


@pytest.mark.parametrize("kind", MAKERS)
def test_without_its_adapter_the_unet_is_the_base(kind: str) -> None:
    base, pipe = output(make(kind)), trained(kind)
    tuned = output(pipe)
    assert not same(tuned, base)
    with adapter_off(pipe.unet):
        assert same(output(pipe), base)
        with adapter_off(pipe.unet):
            assert same(output(pipe), base)
        assert same(output(pipe), base)
    assert same(output(pipe), tuned)


def test_an_error_switches_the_adapter_on_again_and_gradients_stay() -> None:
    pipe = trained("sd15")
    tuned, needed = output(pipe), [p.requires_grad for p in pipe.unet.parameters()]
    with pytest.raises(TypeError), adapter_off(pipe.unet):
        pipe.unet("no tensor")
    assert same(output(pipe), tuned)
    with adapter_off(pipe.unet):
        assert [p.requires_grad for p in pipe.unet.parameters()] == needed


def test_a_unet_without_adapters_can_be_switched_too() -> None:
    pipe = make("sd15")
    with adapter_off(pipe.unet):
        assert same(output(pipe), output(make("sd15")))


PLAIN = """
import sys, warnings
import torch
from diffusers import DiffusionPipeline, LCMScheduler
warnings.simplefilter("error", RuntimeWarning)
torch.set_num_threads(1)
made = {}
for kind, given in torch.load("inputs.pt", weights_only=True).items():
    for name, file in {"kohya": "lcm_kohya.safetensors", "own": None}.items():  # the picture is that of our own file
        pipe = DiffusionPipeline.from_pretrained(f"{kind}/base")
        pipe.load_lora_weights(f"{kind}/lora", weight_name=file)
        with torch.no_grad():
            made[f"{kind} {name}"] = pipe.unet(**given).sample
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    made[f"{kind} picture"] = pipe(
        "a cat", num_inference_steps=4, guidance_scale=1.5, height=16, width=16, output_type="pt",
        generator=torch.Generator().manual_seed(4),
    ).images
assert not any(name.startswith("cm_lightning") for name in sys.modules)
torch.save(made, "outputs.pt")
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """The output of this suite, and that of plain diffusers with the files."""
    folder = tmp_path_factory.mktemp("plain")
    torch.set_num_threads(1)
    given, ours = {}, {}
    for kind in MAKERS:
        make(kind).save_pretrained(folder / kind / "base")
        pipe = trained(kind, alpha=6)
        save_lora(pipe.unet, type(pipe), folder / kind / "lora")
        save_kohya(pipe.unet, folder / kind / "lora")
        given[kind] = inputs(pipe)
        ours |= {f"{kind} own": output(pipe), f"{kind} kohya": output(pipe)}
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
        ours[f"{kind} picture"] = picture(pipe)
    torch.save(given, folder / "inputs.pt")
    # told to stay offline, diffusers 0.36 does not look into a folder either
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    env |= {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", PLAIN], cwd=folder, env=env, check=True)
    theirs = torch.load(folder / "outputs.pt", weights_only=True)
    return {name: (ours[name], theirs[name]) for name in ours}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("file", FILES)
def test_plain_diffusers_loads_the_whole_adapter(plain: dict[str, tuple[Tensor, Tensor]], kind: str, file: str) -> None:
    ours, theirs = plain[f"{kind} {file}"]
    assert same(ours, theirs)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_four_lines_of_the_tutorial_give_our_picture(plain: dict[str, tuple[Tensor, Tensor]], kind: str) -> None:
    ours, theirs = plain[f"{kind} picture"]
    assert ours.shape == (1, 3, 16, 16)
    assert same(ours, theirs)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tuned_once("sd15")

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("cm_lightning.latent.lora_files.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_kohya(pipe.unet, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="does not have an adapter 'style': it has lcm"):
        save_lora(pipe.unet, type(pipe), tmp_path, name="style")


@pytest.mark.parametrize(
    ("layer", "path"),
    [
        ("down_blocks.0.resnets.1.conv1", "input_blocks_2_0_in_layers_2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op"),
        ("down_blocks.1.attentions.0.proj_in", "input_blocks_4_1_proj_in"),
        ("down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2", "input_blocks_8_1_transformer_blocks_9_ff_net_2"),
        ("mid_block.attentions.0.proj_out", "middle_block_1_proj_out"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block_2_emb_layers_1"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks_8_0_skip_connection"),
        ("conv_in", "input_blocks_0_0"),
    ],
)
def test_stability_names(layer: str, path: str) -> None:
    assert kohya.stability_key(layer) == f"lora_unet_{path}"


def test_only_a_unet_of_sdxls_blocks_gets_stabilitys_names(tmp_path: Path) -> None:
    for kind, path in {"sd15": "down_blocks", "sdxl": "input_blocks"}.items():
        file = save_kohya(tuned_once(kind).unet, tmp_path / kind)
        assert any(f"_{path}_" in key for key in load_file(file))


@pytest.mark.parametrize("kind", MAKERS)
def test_we_load_our_own_files(kind: str, tmp_path: Path) -> None:
    tuned = tuned_once(kind, alpha=6)
    for file in (save_lora(tuned.unet, type(tuned), tmp_path), save_kohya(tuned.unet, tmp_path)):
        pipe = make(kind)
        load_lora(pipe, file)
        assert same(output(pipe), output(tuned))
    with pytest.raises(ConfigError, match="already has an adapter 'lcm'"):
        load_lora(pipe, tmp_path)


@pytest.mark.parametrize("kind", MAKERS)
def test_we_load_the_published_format(kind: str, tmp_path: Path) -> None:
    file = write(tmp_path / WEIGHTS, dict.fromkeys(TARGETS, (4, 4.0)), kind, torch.float16)
    pipe, other = make(kind), make(kind)
    load_lora(pipe, file)
    other.load_lora_weights(file)
    assert same(output(pipe), output(other))
    assert torch.allclose(output(pipe), by_hand(kind, {file: 1.0}), atol=1e-5)


def test_ranks_and_alphas_may_differ_between_layers(tmp_path: Path) -> None:
    sizes = {"to_q": (4, 2.0), "to_v": (4, 1.0), "proj_in": (3, 3.0), "conv1": (2, 4.0), "time_emb_proj": (2, 0.5)}
    file = write(tmp_path / "style.safetensors", sizes, "sd15")
    pipe = make("sd15")
    load_lora(pipe, tmp_path)
    assert torch.allclose(output(pipe), by_hand("sd15", {file: 1.0}), atol=1e-5)
    save_lora(pipe.unet, type(pipe), tmp_path / "again")
    again = make("sd15")
    again.load_lora_weights(tmp_path / "again")
    assert same(output(again), output(pipe))


def test_the_scale_of_rank_stabilised_files_is_kept(tmp_path: Path) -> None:
    tuned = tuned_once("sd15")
    described(save_lora(tuned.unet, type(tuned), tmp_path).parent, '{"unet.lora_alpha": 6, "unet.use_rslora": true}')
    pipe = make("sd15")
    load_lora(pipe, tmp_path)
    file = save_kohya(pipe.unet, tmp_path / "kohya")
    assert {tensor.item() for key, tensor in load_file(file).items() if key.endswith("alpha")} == {12.0}
    assert torch.allclose(output(pipe), by_hand("sd15", {file: 1.0}), atol=1e-5)


@pytest.mark.parametrize("kind", MAKERS)
def test_we_load_the_official_export_of_which_diffusers_drops_a_part(kind: str, tmp_path: Path) -> None:
    tuned = tuned_once(kind)
    exported = convert_state_dict_to_diffusers(get_peft_model_state_dict(tuned.unet, adapter_name="lcm"))
    type(tuned).save_lora_weights(tmp_path, unet_lora_layers=exported)
    pipe = make(kind)
    load_lora(pipe, tmp_path)
    assert same(output(pipe), output(tuned))


@pytest.mark.parametrize(("kind", "encoders"), [("sd15", ["te"]), ("sdxl", ["te1", "te2"])])
def test_a_style_may_change_the_text_encoders_too(kind: str, encoders: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "style.safetensors", dict.fromkeys(ATTENTION, (4, 2.0)), kind)
    save_file(load_file(file) | text_tensors(encoders), file)
    pipe, other = make(kind), make(kind)
    load_lora(pipe, file, name="style")
    other.load_lora_weights(file)
    assert same(output(pipe), output(other))
    assert same(picture(pipe), picture(other))
    bare = make(kind)
    bare.unet = pipe.unet
    assert not same(picture(pipe), picture(bare))


def text_tensors(encoders: list[str], width: int = WIDTH) -> dict[str, Tensor]:
    tensors = {}
    for encoder in encoders:
        for layer in ("self_attn_q_proj", "self_attn_out_proj", "mlp_fc1"):
            key = f"lora_{encoder}_text_model_encoder_layers_0_{layer}"
            out = 2 * WIDTH if layer == "mlp_fc1" else WIDTH
            tensors |= {f"{key}.lora_down.weight": torch.randn(2, width), f"{key}.lora_up.weight": torch.randn(out, 2)}
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    return tensors


def missing(folder: Path) -> Path:
    return folder / "missing"


def two_files(folder: Path) -> Path:
    for name in ("a.safetensors", "b.safetensors"):
        (folder / WEIGHTS).rename(folder / name) if name[0] == "a" else (folder / name).write_bytes(b"")
    return folder


def truncated(folder: Path) -> Path:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    return folder


def no_safetensors(folder: Path) -> Path:
    (folder / WEIGHTS).write_text("a picture of a cat")
    return folder


def changed(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def described(folder: Path, metadata: str) -> Path:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"lora_adapter_metadata": metadata})
    return folder


Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
UNFIT: list[tuple[str, Callable[[Path], Path]]] = [
    ("no LoRA at", missing),
    ("choose one of a.safetensors, b.safetensors", two_files),
    ("damaged, or does not hold", truncated),
    ("damaged, or does not hold", no_safetensors),
    ("damaged, or does not hold", lambda folder: described(folder, "{")),
    ("holds no LoRA", lambda folder: changed(folder, lambda t: t.clear())),
    ("holds no LoRA", lambda folder: described(folder, "[]")),
    ("shapes (4, 5) and", lambda folder: changed(
        folder, lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 5)})
    )),
    ("lacks half", lambda folder: changed(folder, lambda t: t.__delitem__(f"{Q}.lora_A.weight"))),
    ("unet.cat.lora_A.weight does not belong", lambda folder: changed(
        folder, lambda t: t.update({"unet.cat.lora_A.weight": torch.zeros(4, 4)})
    )),
    ("cat does not belong", lambda folder: changed(folder, lambda t: t.update({"cat": torch.zeros(4)}))),
    ("twice", lambda folder: changed(
        folder, lambda t: t.update({f"{kohya.diffusers_key(Q[5:])}.lora_down.weight": torch.zeros(4, 16)})
    )),
    ("does not fit this pipeline", lambda folder: changed(folder, lambda t: t.update(text_tensors(["te"], 5)))),
    ("does not fit this pipeline", lambda folder: described(folder, '{"unet.r": 8}')),
]  # fmt: skip


@pytest.mark.parametrize(("message", "spoil"), UNFIT)
@pytest.mark.parametrize("first", [False, True], ids=["alone", "beside another"])
def test_what_cannot_be_loaded_whole_leaves_the_pipeline_as_it_was(
    message: str, spoil: Callable[[Path], Path], first: bool, tmp_path: Path
) -> None:
    tuned = tuned_once("sd15")
    save_lora(tuned.unet, type(tuned), tmp_path)
    pipe = trained("sd15", name="style", targets=ATTENTION) if first else make("sd15")
    before, state = output(pipe), set(pipe.unet.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_lora(pipe, spoil(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if not (first and "pipeline" in message):  # peft leaves its empty wrappers behind
        assert set(pipe.unet.state_dict()) == state
    assert not any("lora_" in key for key in pipe.text_encoder.state_dict())
    assert adapter_names(pipe.unet) == (["style"] if first else [])
    assert same(output(pipe), before)


@pytest.mark.parametrize(("kind", "other"), [("sd15", "sdxl"), ("sdxl", "sd15"), ("sd15", "sd21")])
@pytest.mark.parametrize("file", FILES)
def test_an_adapter_of_another_family_is_refused(kind: str, other: str, file: str, tmp_path: Path) -> None:
    tuned = tuned_once(kind)
    save_lora(tuned.unet, type(tuned), tmp_path)
    save_kohya(tuned.unet, tmp_path)
    pipe = make(other)
    with pytest.raises(CheckpointError, match="not for this kind of model"):
        load_lora(pipe, tmp_path / FILES[file])
    assert adapter_names(pipe.unet) == []


@pytest.fixture
def both(tmp_path: Path) -> tuple[Any, Path, Path]:
    """A pipeline with LCM-LoRA and a style LoRA of alpha unequal to its rank, and their files."""
    tuned = tuned_once("sd15")
    lcm = save_kohya(tuned.unet, tmp_path)
    style = write(tmp_path / "style.safetensors", dict.fromkeys(ATTENTION, (3, 1.0)), "sd15")
    pipe = make("sd15")
    load_lora(pipe, lcm)
    load_lora(pipe, style, name="style")
    return pipe, lcm, style


def test_adapters_add_up_by_their_weights(both: tuple[Any, Path, Path]) -> None:
    pipe, lcm, style = both
    combine(pipe, {"lcm": 1.0, "style": 0.8})
    assert torch.allclose(output(pipe), by_hand("sd15", {lcm: 1.0, style: 0.8}), atol=1e-5)
    assert not torch.allclose(output(pipe), by_hand("sd15", {lcm: 1.0}), atol=1e-2)


def test_switching_one_off_gives_the_other(both: tuple[Any, Path, Path]) -> None:
    pipe, *files = both
    for name, file in zip(("lcm", "style"), files, strict=True):
        alone = make("sd15")
        load_lora(alone, file)
        combine(pipe, {name: 1.0})
        assert same(output(pipe), output(alone))
        combine(pipe, {"lcm": 0.0, "style": 0.0, name: 1.0})
        assert same(output(pipe), output(alone))


def test_only_adapters_that_are_there_combine(both: tuple[Any, Path, Path]) -> None:
    with pytest.raises(ConfigError, match="no adapter cat: the pipeline has lcm, style"):
        combine(both[0], {"lcm": 1.0, "cat": 1.0})
    with pytest.raises(ConfigError, match="no adapter named"):
        combine(both[0], {})


def test_merged_adapters_are_the_model(both: tuple[Any, Path, Path]) -> None:
    pipe = both[0]
    combine(pipe, {"lcm": 1.0, "style": 0.8})
    before = output(pipe)
    merge(pipe)
    assert torch.allclose(output(pipe), before, atol=1e-5)
    assert set(pipe.unet.state_dict()) == set(make("sd15").unet.state_dict())


def test_a_merged_adapter_cannot_be_switched_off(both: tuple[Any, Path, Path]) -> None:
    both[0].fuse_lora()
    with pytest.raises(ConfigError, match="merged"), adapter_off(both[0].unet):
        pass
