"""The parser that the commands share, with one spelling of options and errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from cm_lightning.errors import near


def gives(argv: Sequence[str], option: str) -> bool:
    """Whether an option is among the arguments."""
    return any(argument.partition("=")[0] == option for argument in argv)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, which names the option, and exits with status 2.

    Options are spelt with underscores, as in ``fit``; ``--batch-size`` is read as ``--batch_size``.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=f"cm-lightning {prog}", description=description, allow_abbrev=False)

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        return super().parse_args([self._spelt(argument) for argument in args])

    def _spelt(self, argument: str) -> str:
        """An argument with its option in the parser's own spelling."""
        option, equals, value = argument.partition("=")
        own = f"--{option[2:].replace('-', '_')}"
        return f"{own}{equals}{value}" if option.startswith("--") and own in self._option_string_actions else argument

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            message = self._unknown(message.removeprefix("unrecognized arguments: ").split()[0])
        sys.stderr.write(f"error: {message.removeprefix('argument ')}. See: {self.prog} --help\n")
        raise SystemExit(2)

    def _unknown(self, argument: str) -> str:
        option = argument.partition("=")[0]
        return f"no option {option}{near(option, self._option_string_actions)}"
