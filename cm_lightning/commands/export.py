"""``cm-lightning export``: weights for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm_lightning.modules.base import GenerativeModule

_USE = {
    "safetensors": "`weights.safetensors` holds the state dict of the network: "
    '`backbone.load_state_dict(safetensors.torch.load_file("weights.safetensors"))`.',
    "diffusers": '`diffusers.ConsistencyModelPipeline.from_pretrained("THIS FOLDER")(num_inference_steps=1)`. '
    "With more steps it takes noise levels of its own grid, which are not those of `module.sample`.",
    "onnx": "`generator.onnx` maps `noise` (B, C, H, W) of unit variance, and `class_label` (B,) int64 where there are "
    "classes, to `image` in [-1, 1], in one evaluation.",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cm-lightning export", description="Write weights for other programs.")
    parser.add_argument("--ckpt_path", required=True, help="a checkpoint, openai:FILE, edm:FILE or diffusers:FOLDER")
    parser.add_argument("--format", choices=tuple(_USE), required=True)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the averaged ones if there are any")
    parser.add_argument("--license", default="unknown", help="of the weights, for the card: an SPDX identifier")
    parser.add_argument("--trust", action="append", default=[], help="a package the checkpoint may take classes from")
    return parser


def main(argv: Sequence[str]) -> None:
    """Load, convert, write, describe."""
    args = _parser().parse_args(argv)

    from cm_lightning.errors import ConfigError
    from cm_lightning.files import replacing
    from cm_lightning.interop.card import model_card
    from cm_lightning.interop.foreign import is_foreign
    from cm_lightning.modules.loading import load_module

    module = load_module(args.ckpt_path, args.weights, args.trust)
    _write(module, args.format, args.output)
    steps, averaged = _origin(args.ckpt_path)
    weights = "averaged" if averaged and args.weights != "raw" else "raw"
    if is_foreign(args.ckpt_path):
        if args.weights:
            raise ConfigError(f"--weights {args.weights}: {args.ckpt_path} holds one kind: leave the option out")
        weights = "as in the file"
    with replacing(args.output / "README.md") as path:
        path.write_text(model_card(module, args.ckpt_path, steps, weights, args.license, _USE[args.format]))
    print(f"{args.format}: {args.output}")


def _origin(path: str) -> tuple[int, bool]:
    """Optimizer steps that a checkpoint has seen, and whether it has averaged weights."""
    from cm_lightning.checkpoint import averages, read_checkpoint
    from cm_lightning.interop.foreign import is_foreign

    if is_foreign(path):
        return 0, False
    checkpoint = read_checkpoint(path)
    return int(checkpoint.get("global_step", 0)), bool(averages(checkpoint))


def _write(module: GenerativeModule, kind: str, folder: Path) -> None:
    from cm_lightning.errors import ConfigError
    from cm_lightning.modules.consistency import ConsistencyModule

    if kind == "safetensors":
        _write_safetensors(module, folder / "weights.safetensors")
    elif not isinstance(module, ConsistencyModule):
        raise ConfigError(f"--format {kind} takes a consistency model, and this is a {type(module).__name__}")
    elif kind == "onnx":
        from cm_lightning.interop.onnx import write_onnx

        write_onnx(module, folder / "generator.onnx")
    else:
        _write_pipeline(module, folder)


def _write_safetensors(module: GenerativeModule, path: Path) -> None:
    from safetensors.torch import save_file

    from cm_lightning.files import replacing

    state = {name: tensor.contiguous() for name, tensor in module.backbone.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, {"format": "pt", "network": type(module.backbone).__name__})


def _write_pipeline(module: GenerativeModule, folder: Path) -> None:
    from cm_lightning.interop.diffusers import unet2d_from, write_pipeline
    from cm_lightning.interop.openai import NOISE_SCALE
    from cm_lightning.modules.consistency import ConsistencyModule
    from cm_lightning.modules.starting import require_noise_scale

    assert isinstance(module, ConsistencyModule)
    require_noise_scale(module, NOISE_SCALE, "diffusers' pipeline")
    own = module.parameterization
    unet = unet2d_from(module.backbone, module.image_shape[-1])
    write_pipeline(unet, own.sigma_data, own.sigma_min, module.sigma_max, folder)
