"""An adapter has the same effect in the formats of all programs; a tensor without a layer is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict

from cm_lightning.errors import CheckpointError
from cm_lightning.latent import kohya
from cm_lightning.latent.lora import adapter_names
from cm_lightning.latent.lora_files import load_lora
from tests.latent.test_lora import ATTENTION, make, output, same, text_tensors, tuned_once

pytestmark = [
    pytest.mark.filterwarnings("error::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]

Tensors = dict[str, Tensor]
#: A layer and one of its halves, A or B -> the key of a file.
Key = Callable[[str, str], str]
DOWN = {"A": "down", "B": "up"}
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def processor(layer: str, half: str, between: str = ".processor") -> str:
    attention, _, name = layer.removesuffix(".0").rpartition(".")
    return f"{attention}{between}.{name}_lora.{DOWN[half]}.weight"


def peft(layer: str, half: str) -> str:
    return f"{layer}.lora_{half}.weight"


STYLES: dict[str, Key] = {
    "unet.processor": lambda layer, half: f"unet.{processor(layer, half)}",
    "processor": processor,
    "module.unet.processor": lambda layer, half: f"module.unet.{processor(layer, half)}",
    "unet.to_q_lora": lambda layer, half: f"unet.{processor(layer, half, '')}",
    "unet.lora.down": lambda layer, half: f"unet.{layer}.lora.{DOWN[half]}.weight",
    "unet.to_out.lora.down": lambda layer, half: f"unet.{layer.removesuffix('.0')}.lora.{DOWN[half]}.weight",
    "lora_linear_layer": lambda layer, half: f"unet.{layer}.lora_linear_layer.{DOWN[half]}.weight",
    "lora_layer": lambda layer, half: f"{layer}.lora_layer.{DOWN[half]}.weight",
    "bare peft": peft,
    "bare kohya halves": lambda layer, half: f"{layer}.lora_{DOWN[half]}.weight",
    "peft": lambda layer, half: f"base_model.model.{peft(layer, half)}",
    "peft with a name": lambda layer, half: f"base_model.model.{layer}.lora_{half}.default.weight",
    "unet. with a name": lambda layer, half: f"unet.{layer}.lora_{half}.lcm.weight",
    "peft of a wrapped network": lambda layer, half: f"base_model.model.module.{peft(layer, half)}",
    "peft of a compiled network": lambda layer, half: f"base_model.model._orig_mod.{peft(layer, half)}",
    "peft of a model's unet": lambda layer, half: f"base_model.model.unet.{peft(layer, half)}",
    "module.": lambda layer, half: f"module.{peft(layer, half)}",
    "module.unet.": lambda layer, half: f"module.unet.{peft(layer, half)}",
    "_orig_mod.": lambda layer, half: f"_orig_mod.{peft(layer, half)}",
    "unet._orig_mod.module.": lambda layer, half: f"unet._orig_mod.module.{peft(layer, half)}",
    "model.unet.": lambda layer, half: f"model.unet.{peft(layer, half)}",
    "net.": lambda layer, half: f"net.{peft(layer, half)}",
    "kohya": lambda layer, half: f"{kohya.diffusers_key(layer)}.lora_{DOWN[half]}.weight",
    "kohya with peft's halves": lambda layer, half: f"{kohya.diffusers_key(layer)}.lora_{half}.weight",
}


def tensors_of(pipe: Any, key: Key) -> Tensors:
    state = get_peft_model_state_dict(pipe.unet, adapter_name="lcm")
    return {key(name[: -len(".lora_A.weight")], name[-len("A.weight")]): value for name, value in state.items()}


@pytest.fixture(scope="module")
def tuned() -> Any:
    """A pipeline with an adapter of its attention layers, for which every format has a key."""
    pipe = tuned_once("sd15", targets=ATTENTION)
    assert not same(output(pipe), output(make("sd15")))
    return pipe


@pytest.fixture(scope="module")
def everywhere() -> Any:
    """The same for SDXL's structure, in all layers."""
    return tuned_once("sdxl")


def load(kind: str, path: Path) -> Tensor:
    pipe = make(kind)
    load_lora(pipe, path)
    return output(pipe)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_keys_gives_the_same_network(style: str, tuned: Any, tmp_path: Path) -> None:
    save_file(tensors_of(tuned, STYLES[style]), tmp_path / "style.safetensors")
    assert same(load("sd15", tmp_path), output(tuned))


@pytest.mark.parametrize(
    "key",
    [
        lambda layer, half: f"diffusion_model.{peft(kohya.stability_path(layer), half)}",
        lambda layer, half: f"model.diffusion_model.{peft(kohya.stability_path(layer), half)}",
        lambda layer, half: f"{kohya.stability_key(layer)}.lora_{DOWN[half]}.weight",
        lambda layer, half: f"base_model.model.{peft(layer, half)}",
    ],
    ids=["diffusion_model.", "model.diffusion_model.", "kohya", "peft"],
)
def test_sdxl_has_the_paths_of_stabilitys_code_too(key: Key, everywhere: Any, tmp_path: Path) -> None:
    save_file(tensors_of(everywhere, key), tmp_path / "style.safetensors")
    assert same(load("sdxl", tmp_path), output(everywhere))


FOREIGN = {
    "another part": f"controlnet.{Q}.lora_A.weight",
    "another part, wrapped": f"module.vae.{Q}.lora_A.weight",
    "an unknown layer": "unet.cat.lora_A.weight",
    "an unknown half": f"unet.{Q}.lora_C.weight",
    "a locon's middle": f"unet.{Q}.lora_mid.weight",
    "a bias": f"base_model.model.{Q}.lora_B.bias",
    "a magnitude": f"base_model.model.{Q}.lora_magnitude_vector",
    "a saved module": "base_model.model.conv_in.weight",
    "a processor of another kind": f"unet.{Q[:-5]}.processor.to_x_lora.up.weight",
    "a name within a name": f"unet.{Q}.lora_A.a.b.weight",
    "nothing but a half": "lora_A.weight",
    "nothing but a wrapper": "module.lora_A.weight",
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("style", ["unet.processor", "peft", "bare peft"])
def test_a_foreign_key_is_named(foreign: str, style: str, tuned: Any, tmp_path: Path) -> None:
    mixed = tensors_of(tuned, STYLES[style]) | {foreign: torch.zeros(4, 16)}
    save_file(mixed, tmp_path / "mixed.safetensors")
    pipe = make("sd15")
    with pytest.raises(CheckpointError) as error:
        load_lora(pipe, tmp_path)
    assert f"its {foreign} does not belong to the UNet" in str(error.value)
    assert adapter_names(pipe.unet) == []


def test_one_layer_in_two_styles_is_ambiguous(tuned: Any, tmp_path: Path) -> None:
    both = tensors_of(tuned, STYLES["unet.processor"]) | {f"module.{Q}.lora_A.weight": torch.zeros(4, 16)}
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(CheckpointError, match=f"it holds {Q} twice"):
        load_lora(make("sd15"), tmp_path)


def peft_folder(folder: Path, kind: str = "sd15", safe: bool = True, **options: Any) -> Tensor:
    """The files that peft saves for a network, and the output of that network."""
    pipe = make(kind)
    adapted = get_peft_model(pipe.unet, LoraConfig(target_modules=list(ATTENTION), **options))
    generator = torch.Generator().manual_seed(6)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    adapted.save_pretrained(folder, safe_serialization=safe)
    return output(pipe)


OPTIONS: dict[str, dict[str, Any]] = {
    "alpha": {"r": 4, "lora_alpha": 6},
    "rank-stabilised": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "ranks": {"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 2, "attn2.to_v": 3}},
    "alphas": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_k": 1, "^mid_block.*to_v": 16}},
    "all": {"r": 4, "lora_alpha": 5, "use_rslora": True, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 7}},
    "orthogonal start": {"r": 4, "lora_alpha": 4, "init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pefts_own_folder_keeps_rank_and_alpha(options: dict[str, Any], tmp_path: Path) -> None:
    expected = peft_folder(tmp_path, **options)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (load("sd15", tmp_path) - expected).abs().max().item() <= 1e-6
    assert (load("sd15", tmp_path / "adapter_model.safetensors") - expected).abs().max().item() <= 1e-6


def test_the_configuration_beside_belongs_to_a_file_of_any_name(tmp_path: Path) -> None:
    expected = peft_folder(tmp_path, r=4, lora_alpha=9)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "style.safetensors")
    assert (load("sd15", tmp_path) - expected).abs().max().item() <= 1e-6


def test_without_its_configuration_alpha_is_the_rank(tmp_path: Path) -> None:
    expected = peft_folder(tmp_path, r=4, lora_alpha=4)
    (tmp_path / "adapter_config.json").unlink()
    assert (load("sd15", tmp_path) - expected).abs().max().item() <= 1e-6


def test_a_file_that_tells_its_alpha_needs_no_configuration_beside(tuned: Any, tmp_path: Path) -> None:
    alphas = {f"unet.{layer}.alpha": torch.tensor(8.0) for layer in tensors_of(tuned, lambda layer, _: layer)}
    own = tensors_of(tuned, STYLES["unet.lora.down"]) | alphas
    save_file(own, tmp_path / "own.safetensors")
    alone = load("sd15", tmp_path / "own.safetensors")
    assert not same(alone, output(tuned))
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 99}')
    assert same(load("sd15", tmp_path / "own.safetensors"), alone)


BAD_CONFIGS = {
    "cut": ("{", "adapter_config.json is damaged"),
    "a list": ("[1]", "adapter_config.json is damaged"),
    "another rank": ('{"r": 8, "lora_alpha": 8}', "it gives rank 8 for .*, but the rank is 4"),
    "pissa": ('{"r": 4, "init_lora_weights": "pissa_niter_4"}', "initialised as pissa_niter_4, which changes the base"),
    "olora": ('{"r": 4, "init_lora_weights": "OLoRA"}', "initialised as olora, which changes the base"),
    "text for alpha": ('{"r": 4, "lora_alpha": "much"}', "adapter_config.json is damaged"),
    "no pattern": ('{"r": 4, "alpha_pattern": {"(": 3}}', "adapter_config.json is damaged"),
    "text for patterns": ('{"r": 4, "rank_pattern": "to_q"}', "adapter_config.json is damaged"),
}


@pytest.mark.parametrize(("content", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_configuration_that_cannot_be_meant_is_refused(content: str, message: str, tmp_path: Path) -> None:
    peft_folder(tmp_path, r=4, lora_alpha=4)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load("sd15", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("pytorch_lora_weights.bin", "unet.processor"),
        ("adapter_model.bin", "peft"),
        ("style.pt", "kohya"),
        ("style.ckpt", "peft"),
        ("style.pth", "unet.processor"),
    ],
)
def test_files_of_torch_save_are_read(name: str, style: str, tuned: Any, tmp_path: Path) -> None:
    torch.save(tensors_of(tuned, STYLES[style]), tmp_path / name)
    assert same(load("sd15", tmp_path), output(tuned))


SAVED: dict[str, Callable[[Tensors], object]] = {
    "under state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "parameters": lambda tensors: {key: torch.nn.Parameter(value) for key, value in tensors.items()},
    "alphas as numbers": lambda tensors: tensors | {f"unet.{Q}.alpha": 4},
}


@pytest.mark.parametrize("make_content", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_forms_of_torch_save(
    make_content: Callable[[Tensors], object], legacy: bool, tuned: Any, tmp_path: Path
) -> None:
    content = make_content(tensors_of(tuned, STYLES["unet.processor"]))
    torch.save(content, tmp_path / "style.bin", _use_new_zipfile_serialization=not legacy)
    assert same(load("sd15", tmp_path / "style.bin"), output(tuned))


def test_the_content_counts_not_the_ending(tuned: Any, tmp_path: Path) -> None:
    tensors = tensors_of(tuned, STYLES["unet.processor"])
    save_file(tensors, tmp_path / "a.bin")
    torch.save(tensors, tmp_path / "b.safetensors")
    for file in tmp_path.iterdir():
        assert same(load("sd15", file), output(tuned))


def test_peft_saves_bin_too(tmp_path: Path) -> None:
    expected = peft_folder(tmp_path, safe=False, r=4, lora_alpha=6)
    assert (tmp_path / "adapter_model.bin").is_file()
    assert (load("sd15", tmp_path) - expected).abs().max().item() <= 1e-6


class Object:
    """An object that a pickle could hold."""


BAD_SAVED: dict[str, tuple[object, str]] = {
    "an object": ({"x": Object()}, "damaged, or does not hold tensors alone"),
    "a list": ([torch.zeros(2)], "holds no LoRA"),
    "nothing": ({}, "holds no LoRA"),
    "text": ({"name": "cat"}, "its name is not a tensor"),
    "a whole model": ({"state_dict": {"conv_in.weight": torch.zeros(2)}}, "its conv_in.weight does not belong"),
}


@pytest.mark.parametrize(("content", "message"), BAD_SAVED.values(), ids=BAD_SAVED)
def test_what_torch_save_wrote_and_is_not_a_lora_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "style.bin")
    with pytest.raises(CheckpointError, match=message):
        load_lora(make("sd15"), tmp_path)


def test_usual_names_come_before_what_a_training_leaves_beside(tuned: Any, tmp_path: Path) -> None:
    torch.save(tensors_of(tuned, STYLES["peft"]), tmp_path / "pytorch_lora_weights.bin")
    torch.save({"step": 1}, tmp_path / "optimizer.bin")
    save_file({"x": torch.zeros(1)}, tmp_path / "unet.safetensors")
    assert same(load("sd15", tmp_path), output(tuned))


def test_the_old_formats_text_encoder_comes_along(tuned: Any, tmp_path: Path) -> None:
    old, new = make("sd15"), make("sd15")
    text = {}
    for layer in ("q_proj", "v_proj", "out_proj"):
        path = f"text_encoder.text_model.encoder.layers.0.self_attn.{layer}.lora_linear_layer"
        text |= {f"{path}.down.weight": torch.ones(2, 16), f"{path}.up.weight": torch.ones(16, 2)}
    save_file(tensors_of(tuned, STYLES["unet.processor"]) | text, tmp_path / "old.safetensors")
    load_lora(old, tmp_path / "old.safetensors")
    save_file(tensors_of(tuned, STYLES["unet.lora.down"]) | text, tmp_path / "new.safetensors")
    new.load_lora_weights(tmp_path / "new.safetensors")
    ids = torch.tensor([[0, 3, 4, 1]])
    assert same(old.text_encoder(ids)[0], new.text_encoder(ids)[0])
    assert not same(old.text_encoder(ids)[0], make("sd15").text_encoder(ids)[0])
    assert same(output(old), output(tuned))


def test_text_encoders_of_kohya_stay_with_a_torch_file(tuned: Any, tmp_path: Path) -> None:
    torch.save(tensors_of(tuned, STYLES["kohya"]) | text_tensors(["te"]), tmp_path / "style.pt")
    pipe = make("sd15")
    load_lora(pipe, tmp_path, name="style")
    assert {name for names in pipe.get_list_adapters().values() for name in names} == {"style"}
    assert set(pipe.get_list_adapters()) == {"unet", "text_encoder"}


def test_the_configuration_peft_writes_is_the_one_that_is_read(tmp_path: Path) -> None:
    peft_folder(tmp_path, r=4, lora_alpha=6, rank_pattern={"to_q": 2})
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"} <= written.keys()
