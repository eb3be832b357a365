"""The parser that the commands share: it says in one line what is wrong, without the usage before it."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from cm_lightning.errors import near


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, which names the option, and exit code 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=f"cm-lightning {prog}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            message = self._unknown(message.removeprefix("unrecognized arguments: ").split()[0])
        sys.stderr.write(f"error: {message.removeprefix('argument ')}. See: {self.prog} --help\n")
        raise SystemExit(2)

    def _unknown(self, argument: str) -> str:
        option = argument.partition("=")[0]
        return f"no option {option}{near(option, self._option_string_actions)}"
