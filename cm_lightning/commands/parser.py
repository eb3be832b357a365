"""The parser that the commands share: it says in one line what is wrong, without the usage before it."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, which names the option, and exit code 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=f"cm-lightning {prog}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            message = self._unknown(message.removeprefix("unrecognized arguments: ").split()[0])
        sys.stderr.write(f"error: {message}\nSee: {self.prog} --help\n")
        raise SystemExit(2)

    def _unknown(self, argument: str) -> str:
        option = argument.partition("=")[0]
        near = difflib.get_close_matches(option, self._option_string_actions, n=1)
        return f"no option {option}" + (f": did you mean {near[0]}?" if near else "")
