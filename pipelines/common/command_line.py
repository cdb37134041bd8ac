"""The argument parser of every command."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pipelines.common.errors import UserError
from pipelines.common.text import one_line


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError`, in one line without the usage, where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{one_line(message)}; see {self.prog} --help")
