"""``cm-lightning export``: write weights for other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from cm_lightning.commands.parser import CommandParser

if TYPE_CHECKING:
    from cm_lightning.modules.base import GenerativeModule
    from cm_lightning.modules.trained import TrainedModule

_USE = {
    "safetensors": '`cm_lightning.load_module("THIS FOLDER")` builds the module from `config.json`. '
    "`weights.safetensors` holds only the state dict of its network.",
    "diffusers": '`diffusers.ConsistencyModelPipeline.from_pretrained("THIS FOLDER")(num_inference_steps=1)`. '
    "With more steps it uses noise levels of its own grid, which are not those of `module.sample`.",
    "onnx": "`generator.onnx` maps `noise` (B, C, H, W) of unit variance, and `class_label` (B,) int64 where there are "
    "classes, to `image` in [-1, 1], in one evaluation.",
    "web": "Put the folder on any static host, or run `python -m http.server` in it and open `localhost:8000`. The "
    "page runs `model.onnx` in the browser by ONNX Runtime Web, whose files in `runtime` are under the MIT licence.",
}
_NO_RUNTIME = (
    "note: --output {} does not hold ONNX Runtime Web yet, which the page needs: run 'npm pack onnxruntime-web', and "
    "export again with --runtime onnxruntime-web-VERSION.tgz --overwrite\n"
)


def _parser() -> CommandParser:
    parser = CommandParser("export", "Write weights for other programs.")
    parser.add_argument("--ckpt_path", required=True, help="a checkpoint, openai:FILE, edm:FILE or diffusers:FOLDER")
    parser.add_argument("--format", choices=tuple(_USE), required=True)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to, new or empty")
    parser.add_argument("--overwrite", action="store_true", help="write to a folder that already holds files")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the averaged ones if there are any")
    parser.add_argument(
        "--runtime", type=Path, help="for --format web: the npm package onnxruntime-web, its .tgz or its folder"
    )
    parser.add_argument("--license", default="unknown", help="licence of the weights, for the card: an SPDX identifier")
    parser.add_argument("--trust", action="append", default=[], help="a package whose classes the checkpoint may use")
    return parser


def main(argv: Sequence[str]) -> None:
    """Check, load, convert, write, describe."""
    options = _parser()
    args = options.parse_args(argv)
    if args.runtime and args.format != "web":
        options.error("--runtime is an option of --format web: leave it out")
    _check_folder(args.output, args.overwrite)

    from cm_lightning.export.card import model_card
    from cm_lightning.files import replacing
    from cm_lightning.modules.base import GenerativeModule
    from cm_lightning.modules.loading import load_trained

    module = load_trained(args.ckpt_path, args.weights, args.trust)
    if not isinstance(module, GenerativeModule):
        _write_own(module, args.format, args.output)
        return
    steps, weights = _origin(args.ckpt_path, args.weights)
    _write(module, args.format, args.output, steps, weights, args.runtime)
    with replacing(args.output / "README.md") as path:
        path.write_text(model_card(module, args.ckpt_path, steps, weights, args.license, _USE[args.format]))
    print(f"{args.format}: {args.output}")
    if args.format == "web" and not (args.output / "runtime").is_dir():
        sys.stderr.write(_NO_RUNTIME.format(args.output))


def _write_own(module: TrainedModule, kind: str, folder: Path) -> None:
    """Have a module that does not draw images by itself, such as one that draws from prompts, write its own folder."""
    from cm_lightning.errors import ConfigError

    export = getattr(module, "export", None)
    if not callable(export):
        raise ConfigError(f"a {type(module).__name__} does not export to another format: give a module that draws")
    if kind != "diffusers":
        raise ConfigError(f"--format {kind}: a {type(module).__name__} has only one format: give --format diffusers")
    export(folder)
    print(f"{kind}: {folder}")


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raise ConfigError, before anything is loaded, if the folder cannot be written to or is not empty."""
    from cm_lightning.errors import ConfigError

    try:
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise ConfigError(f"--output {folder} already holds files: choose another folder, or add --overwrite")
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"--output {folder} cannot be written to ({error.strerror}): choose another folder"
        ) from error


def _origin(path: str, which: str | None) -> tuple[int, str]:
    """The optimizer steps of the weights, 0 if that is not known, and their kind."""
    from cm_lightning.checkpoint import averages, read_checkpoint
    from cm_lightning.interop.folder import find_export
    from cm_lightning.interop.foreign import is_foreign

    if is_foreign(path):
        return 0, "as in the file"
    if (exported := find_export(path)) is not None:
        return exported.steps, exported.kind
    checkpoint = read_checkpoint(path)
    averaged = which != "raw" and averages(checkpoint)
    return int(checkpoint.get("global_step", 0)), "averaged" if averaged else "raw"


def _write(
    module: GenerativeModule, kind: str, folder: Path, steps: int, weights: str, runtime: Path | None = None
) -> None:
    from cm_lightning.errors import ConfigError
    from cm_lightning.modules.consistency import ConsistencyModule
    from cm_lightning.modules.flow_map import FlowMapModule

    if kind == "safetensors":
        from cm_lightning.export.folder import write_export

        write_export(module, folder, steps, weights)
    elif not isinstance(module, ConsistencyModule | FlowMapModule):
        raise ConfigError(f"--format {kind} takes a one-step model, but this is a {type(module).__name__}")
    elif kind == "onnx":
        from cm_lightning.export.onnx import write_onnx

        write_onnx(module, folder / "generator.onnx")
    elif kind == "web":
        from cm_lightning.export.web import write_page

        write_page(module, folder, runtime)
    elif (
        not isinstance(module, ConsistencyModule)
        or module.noise_labels_given > 1
        or getattr(module.parameterization, "told_t", False)
    ):
        raise ConfigError(
            "--format diffusers: its pipeline gives the network ln sigma, but this network takes another time: "
            "give --format onnx"
        )
    else:
        from cm_lightning.export.diffusers import write_pipeline

        write_pipeline(module, folder)
