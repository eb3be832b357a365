"""``cm-lightning serve``: a page in the browser that draws while a slider or the pen moves."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence

from cm_lightning.commands.drawers import add_model, check_model, load_drawers
from cm_lightning.commands.parser import CommandParser
from cm_lightning.domains import Domain
from cm_lightning.light import light_lightning

_PORT = Domain("a whole number from 0 to 65535", lambda value: 0 <= value < 2**16, whole=True)


def parser() -> CommandParser:
    """The options of ``serve``."""
    parser = CommandParser("serve", "Draw in the browser while a slider or the pen moves.")
    add = parser.add_argument
    add_model(parser)
    add("--teacher", help="another model, whose image in many steps is shown beside that of the first")
    add("--port", type=_PORT.parse, default=8000, help="0 uses any free port; default: 8000")
    add("--host", default="127.0.0.1", help="0.0.0.0 admits other machines; default: 127.0.0.1, this machine alone")
    add("--open", action="store_true", help="open the page in the browser")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, which are checked as far as possible before a model is read."""
    options = parser()
    args = options.parse_args(argv)
    check_model(options, args)
    return args


def main(argv: Sequence[str]) -> None:
    """Load the models and serve until Ctrl-C."""
    args = _parse(argv)

    light_lightning()
    from cm_lightning.serve.painter import Painter
    from cm_lightning.serve.server import Server
    from cm_lightning.serve.wish import Wish

    model, *teachers = load_drawers(args, args.teacher)
    painter = Painter(model, *teachers)
    with Server(painter, args.host, args.port) as server:
        painter.draw(Wish())  # the first image takes longer than all others
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        if not server.local:
            sys.stderr.write("note: anyone who can reach this machine can use the page\n")
        if args.open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
