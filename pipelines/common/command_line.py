"""The argument parser of every command."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pipelines.common.errors import UserError
from pipelines.common.text import one_line


def at_least_1(text: str) -> int:
    """Return a whole number of at least 1, as a type for argparse."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"is '{text}'; it must be a whole number of at least 1")
    return int(text)


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError`, in one line without the usage, where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message and the command whose --help says more."""
        raise UserError(f"{one_line(message)}; see {self.prog} --help")
