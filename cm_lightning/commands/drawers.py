"""The model behind the commands that draw one image at a time: a checkpoint, or a text-to-image model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cm_lightning.commands.parser import CommandParser

if TYPE_CHECKING:
    from cm_lightning.serve.drawer import Drawer


def add_model(parser: CommandParser) -> None:
    """Add the options that name the model."""
    add = parser.add_argument
    add("--ckpt_path", help="a checkpoint, openai:FILE, edm:FILE or diffusers:FOLDER")
    add("--pipeline", help="a text-to-image model in its place: a folder of diffusers or a name on the hub")
    add("--lora", action="append", default=[], metavar="PATH[:WEIGHT]", help="a LoRA, as in sample; may repeat")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="type of --pipeline's weights")
    add("--weights", choices=("ema", "raw"), help="those of --ckpt_path; default: the averaged ones if any")
    add("--device", default="auto", help="cpu, cuda, ...; auto uses an accelerator if there is one")
    add("--trust", action="append", default=[], help="a package whose classes the checkpoints may use")


def check_model(
    options: CommandParser,
    args: argparse.Namespace,
    of_checkpoints: tuple[str, ...] = (),
    of_pipelines: tuple[str, ...] = (),
) -> None:
    """End the program with a line unless exactly one model is given, without options of the other kind.

    Args:
        options: the command's parser.
        args: the parsed arguments.
        of_checkpoints: more options that belong to --ckpt_path.
        of_pipelines: more options that belong to --pipeline.
    """
    if (args.ckpt_path is None) == (args.pipeline is None):
        options.error("give either --ckpt_path, a checkpoint, or --pipeline, a text-to-image model")
    if args.ckpt_path:
        owner, strange = "--pipeline", ("lora", "dtype", *of_pipelines)
    else:
        owner, strange = "--ckpt_path", ("weights", "trust", *of_checkpoints)
    if given := [name for name in strange if getattr(args, name) != options.get_default(name)]:
        options.error(f"--{given[0]} belongs to {owner}: leave it out")


def load_drawers(args: argparse.Namespace, teacher: str | None = None) -> list[Drawer]:
    """The model, and the teacher if there is one."""
    return _text_to_image(args, teacher) if args.pipeline else _of_checkpoints(args, teacher)


def _of_checkpoints(args: argparse.Namespace, teacher: str | None) -> list[Drawer]:
    from cm_lightning.device import chosen_device
    from cm_lightning.modules.loading import load_module
    from cm_lightning.serve.samples import SampleDrawer

    device = chosen_device(args.device)
    given = [(args.ckpt_path, args.weights), *([(teacher, None)] if teacher else [])]
    return [SampleDrawer(load_module(path, which, args.trust).to(device), path) for path, which in given]


def _text_to_image(args: argparse.Namespace, teacher: str | None) -> list[Drawer]:
    from cm_lightning.commands.prompt import lora_weights
    from cm_lightning.device import chosen_device
    from cm_lightning.serve.prompts import PromptDrawer

    device = chosen_device(args.device)
    model = PromptDrawer.load(args.pipeline, lora_weights(args.lora), device, args.dtype)
    return [model, *([PromptDrawer.load_teacher(teacher, device, args.dtype)] if teacher else [])]
