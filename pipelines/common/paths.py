"""Paths as people write them: `~`, `~user`, `$NAME` and `${NAME}` mean what they mean in a shell.

A shell does not expand them inside a word, as in data.path=~/images, nor in a file. They are expanded once, where a
path is read. A literal dollar sign is written `$$`, and a literal `~` in the current folder `./~`. So a path that is
written into a config is read back unchanged, whatever variables are set and whatever files exist.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

from pipelines.common.text import unfit

LONGEST_NAME = 255
LONGEST_PATH = 4000
_DOLLAR = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[^}]*)\}?)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expanded(text: str) -> str:
    """Return the path that a text stands for. An existing path with a dollar sign is returned as it is.

    Raises ValueError for a variable that is not set, an unknown user, and a path that is too long for a file system.
    """
    if "$" in text and "$$" not in text and os.path.lexists(text):
        return text
    path = _DOLLAR.sub(_value, _home(text))
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(
            f"is '{path:.40}...'; a path has at most {LONGEST_PATH} bytes, and a name in it {LONGEST_NAME}: shorten it"
        )
    return path


def written(path: str) -> str:
    """Return the text that `expanded` turns into this path."""
    return ("./" if path.startswith("~") else "") + path.replace("$", "$$")


def argument(text: str) -> str:
    """Return the path of a command line's argument, as a type for argparse. An existing path may have any name."""
    if not text.startswith("~") and os.path.lexists(text):
        return text
    try:
        return expanded(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def path_argument(text: str) -> Path:
    """Return the path of a command line's argument as a `Path`, as a type for argparse."""
    return Path(argument(text))


def _in_config(text: str) -> str:
    """Return the path of a text in a config. Raises ValueError for a path that a config cannot hold."""
    path = expanded(text)
    if (problem := unfit(path)) is not None:
        raise ValueError(f"is '{path}', which {problem}")
    return path


def _home(text: str) -> str:
    if not text.startswith("~"):
        return text
    user, slash, rest = text.partition("/")
    home = os.path.expanduser(user)
    if home != user:
        return f"{home.replace('$', '$$')}{slash}{rest}"
    if os.path.lexists(text):
        return text
    raise ValueError(f"is '{text}'; there is no user {user[1:] or 'of this process'}: write the folder, or ./{text}")


def _value(found: re.Match[str]) -> str:
    if found["dollar"]:
        return "$"
    name = found["name"] or found["braced"]
    if name is None:  # As in a shell, `5$` is literal.
        return found[0]
    if not _NAME.fullmatch(name) or (found["braced"] and not found[0].endswith("}")):
        raise ValueError(
            f"is '{found.string}'; of ${{...}} only ${{NAME}} is known: write the path, or $$ for a dollar sign"
        )
    if not os.environ.get(name):
        raise ValueError(
            f"is '{found.string}'; the variable {name} is not set: set it, write the path, or $$ for a dollar sign"
        )
    return os.environ[name]


PathText = Annotated[str, AfterValidator(_in_config), PlainSerializer(written)]
"""A path in a config: expanded where it is read, escaped where it is written."""
