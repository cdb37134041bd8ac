"""What the commands share in what they are given and what they print: one line for one thing."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from dynsparse.errors import UserError, one_line


class Parser(argparse.ArgumentParser):
    """One that reports errors as all others are: in a line, without the usage."""

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(prog=f"python -m dynsparse {command}", **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{one_line(message)}; see {self.prog} --help")
