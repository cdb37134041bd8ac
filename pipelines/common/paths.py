"""Paths as people write them: `~`, `~user`, `$NAME` and `${NAME}` mean what they mean in a shell.

A shell leaves them alone in the middle of a word, as in data.path=~/images, and never sees those of a file. What they
stand for is decided once, where a path is read. A dollar sign that is one is written `$$`, and `~` in the current
folder `./~`: so a path that a config is written with is read back as it was, whatever is set and whatever is there.
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
    """The path that a text stands for. ValueError for a variable that is not set, and a user that there is not.

    Nor for one that no file system takes: asking whether it is there would be an error. A path with a dollar sign that
    is there is taken as it is.
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
    """The text that stands for just this path."""
    return ("./" if path.startswith("~") else "") + path.replace("$", "$$")


def argument(text: str) -> str:
    """The path that an argument of a command line is, as its type for argparse: what is there has any name."""
    if not text.startswith("~") and os.path.lexists(text):
        return text
    try:
        return expanded(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def path_argument(text: str) -> Path:
    """The same as a `Path`."""
    return Path(argument(text))


def _in_config(text: str) -> str:
    """The path, if a config can be written with it."""
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
    if name is None:  # As a shell has it, `5$` is just that.
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
"""A path in a config. The config holds the path; it is written as a text that stands for it."""
