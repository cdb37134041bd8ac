"""Runs a program of the project in this process, which ends soon after."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fuzz import commands


def program(home: Path, line: list[str], suspects: Mapping[str, bytes]) -> int:
    """`line` is its command line, less `python -m`. The folder, arguments and log of this process are changed."""
    # A process that is started anew would import torch, for seconds; this one has it.
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment, misc, return-value]
    if line[0].endswith(".py"):
        return commands.execute(home, line)
    import pipelines.__main__
    from tests.fuzz.inputs import agreement, preparing

    os.chdir(home)
    sys.argv = [f"python -m {line[0]}", *line[1:]]
    if line[0] == "pipelines":
        return pipelines.__main__.PROGRAM.run(line[1:])
    if line[0] in ("prepare", "killed", "full"):
        return preparing.program(line)
    if line[0] == "look":
        return agreement.look(line[1], Path(line[2]))
    assert line[0] == "verdicts", line
    return agreement.verdicts(line[1], suspects)


def said(text: str) -> Any:
    """Read the JSON that a program printed."""
    return json.loads(text)
