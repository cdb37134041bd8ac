"""The option `--resume`, which can name a checkpoint to resume, a run to take weights from, or both."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from dynsparse.errors import UserError
from pipelines.common.paths import argument


@dataclass(frozen=True)
class Resume:
    """The request of a `--resume` that may be repeated."""

    go_on: str | None = None
    """"auto", or a checkpoint to resume from."""
    weights: str | None = None
    """A run to take weights from."""


def read_resume(arguments: argparse.Namespace) -> Resume:
    """Read `--resume`. Raises UserError for two runs.

    A path beside "auto", or with --prune or --copy-mask-from, is where weights come from.
    """
    given = list(dict.fromkeys(arguments.resume or ()))
    paths = [text for text in given if text != "auto"]
    auto = "auto" if "auto" in given else None
    if len(paths) > 1:
        raise UserError(f"--resume: names both {paths[0]} and {paths[1]}; give one run, and auto to resume if it can")
    starts = auto or {"--prune", "--copy-mask-from"} & vars(arguments).keys()
    if paths and starts:
        return Resume(auto, paths[0])
    return Resume(path_given("--resume", paths[0]) if paths else auto)


def path_given(option: str, text: str) -> str:
    """Return the path that an option's text stands for. Raises UserError, as for a variable that is not set."""
    try:
        return argument(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{option}: {error}") from None
