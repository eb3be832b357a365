"""``cm-lightning serve``: a page in the browser that draws while a slider or the pen moves."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import Domain
from cm_lightning.light import light_lightning

if TYPE_CHECKING:
    from cm_lightning.serve.drawer import Drawer

_PORT = Domain("a whole number from 0 to 65535", lambda value: 0 <= value < 2**16, whole=True)


def parser() -> CommandParser:
    """The options of ``serve``."""
    parser = CommandParser("serve", "Draw in the browser while a slider or the pen moves.")
    add = parser.add_argument
    add("--ckpt_path", help="a checkpoint, openai:FILE, edm:FILE or diffusers:FOLDER")
    add("--pipeline", help="in its place a text-to-image model: a folder of diffusers or a name on the hub")
    add("--lora", action="append", default=[], metavar="PATH[:WEIGHT]", help="of --pipeline, as in sample; may repeat")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="type of --pipeline's weights")
    add("--teacher", help="another model, whose picture in many steps is shown beside that of the first")
    add("--port", type=_PORT.parse, default=8000, help="0 takes any that is free; default: 8000")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: 127.0.0.1, this one alone")
    add("--weights", choices=("ema", "raw"), help="of --ckpt_path; default: the averaged ones if there are any")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes an accelerator if there is one")
    add("--open", action="store_true", help="open the page in the browser")
    add("--trust", action="append", default=[], help="a package the checkpoints may take classes from")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, checked as far as possible before a model is read."""
    options = parser()
    args = options.parse_args(argv)
    if (args.ckpt_path is None) == (args.pipeline is None):
        options.error("give either --ckpt_path, a checkpoint, or --pipeline, a text-to-image model")
    for_pipelines = [f"--{name}" for name in ("lora", "dtype") if getattr(args, name) != options.get_default(name)]
    if args.ckpt_path and for_pipelines:
        options.error(f"{for_pipelines[0]} belongs to --pipeline: leave it out")
    if args.pipeline and (args.weights or args.trust):
        options.error(f"--{'weights' if args.weights else 'trust'} belongs to --ckpt_path: leave it out")
    return args


def main(argv: Sequence[str]) -> None:
    """Load, serve, until Ctrl-C."""
    args = _parse(argv)

    light_lightning()
    from cm_lightning.serve.painter import Painter
    from cm_lightning.serve.server import Server
    from cm_lightning.serve.wish import Wish

    model, *teachers = _text_to_image(args) if args.pipeline else _of_checkpoints(args)
    painter = Painter(model, *teachers)
    with Server(painter, args.host, args.port) as server:
        painter.draw(Wish())  # the first picture takes longer than all others
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        if not server.local:
            sys.stderr.write("note: whoever reaches this machine can use the page\n")
        if args.open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _of_checkpoints(args: argparse.Namespace) -> list[Drawer]:
    """The model, and the teacher if there is one."""
    from cm_lightning.device import chosen_device
    from cm_lightning.modules.loading import load_module
    from cm_lightning.serve.samples import SampleDrawer

    device = chosen_device(args.device)
    given = [(args.ckpt_path, args.weights), *([(args.teacher, None)] if args.teacher else [])]
    return [SampleDrawer(load_module(path, which, args.trust).to(device), path) for path, which in given]


def _text_to_image(args: argparse.Namespace) -> list[Drawer]:
    from cm_lightning.commands.prompt import lora_weights
    from cm_lightning.device import chosen_device
    from cm_lightning.serve.prompts import PromptDrawer

    device = chosen_device(args.device)
    model = PromptDrawer.load(args.pipeline, lora_weights(args.lora), device, args.dtype)
    return [model, *([PromptDrawer.load_teacher(args.teacher, device, args.dtype)] if args.teacher else [])]
