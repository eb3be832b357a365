"""``cm-lightning serve``: a page in the browser that draws while a slider or the pen moves."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence

from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import Domain
from cm_lightning.light import light_lightning

_PORT = Domain("a whole number from 0 to 65535", lambda value: 0 <= value < 2**16, whole=True)


def parser() -> CommandParser:
    """The options of ``serve``."""
    parser = CommandParser("serve", "Draw in the browser while a slider or the pen moves.")
    add = parser.add_argument
    add("--ckpt_path", required=True, help="a checkpoint, openai:FILE, edm:FILE or diffusers:FOLDER")
    add("--teacher", help="another, whose pictures are shown beside those of the first: its teacher, in many steps")
    add("--port", type=_PORT.parse, default=8000, help="0 takes any that is free; default: 8000")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: 127.0.0.1, this one alone")
    add("--weights", choices=("ema", "raw"), help="default: the averaged ones if there are any")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes an accelerator if there is one")
    add("--open", action="store_true", help="open the page in the browser")
    add("--trust", action="append", default=[], help="a package the checkpoints may take classes from")
    return parser


def main(argv: Sequence[str]) -> None:
    """Load, serve, until Ctrl-C."""
    args = parser().parse_args(argv)

    light_lightning()
    from cm_lightning.device import chosen_device
    from cm_lightning.modules.loading import load_module
    from cm_lightning.serve.painter import Model, Painter
    from cm_lightning.serve.server import Server
    from cm_lightning.serve.wish import Wish

    device = chosen_device(args.device)

    def load(path: str, weights: str | None = None) -> Model:
        return Model(load_module(path, weights, args.trust).to(device), path)

    painter = Painter(load(args.ckpt_path, args.weights), load(args.teacher) if args.teacher else None)
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
