"""The record of a measurement: figures, and where and with what they were made, kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dynsparse.errors import UserError
from dynsparse.files import write_whole
from dynsparse.training.state import versions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "docs" / "results"
Result = dict[str, Any]


def load() -> float:
    """Return the machine's load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def machine() -> Result:
    """Return the processor, its cores, torch's threads and the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit(tree: Path = ROOT) -> str | None:
    """Return the commit of a working tree, with "-dirty" if what is measured may be something else.

    Files that git does not know count, as they may be imported. Results and pages do not: a long table adds to them as
    it goes. None without git or outside of a repository.
    """
    git = ["git", "-C", str(tree)]
    try:
        found = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # A machine without git.
        return None
    if found.returncode:
        return None
    code = [".", ":(exclude)benchmarks/results", ":(exclude)docs"]
    changed = subprocess.run([*git, "status", "--porcelain", "--", *code], capture_output=True, check=True).stdout
    return found.stdout.strip() + ("-dirty" if changed else "")


@cache
def own_commit() -> str | None:
    """Return the commit of this working tree as it was at the first call: scripts ask before they measure."""
    return commit()


def origin() -> Result:
    """Return the commit and the processor, for a part of a result that may come from another call than the others."""
    return {"commit": own_commit(), "processor": _processor()}


def described(name: str, result: Mapping[str, Any], command: str | None = None) -> Result:
    """Return a result with the command that made it, machine, versions and commit, as JSON gives it back."""
    command = command or shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    made = {"command": command, "machine": machine(), "versions": versions(), "commit": own_commit()}
    content: Result = json.loads(json.dumps({**made, **result}))
    return content


def keep(name: str, result: Mapping[str, Any], folder: Path | None = None, command: str | None = None) -> Path:
    """Write {name}.json to results/ or another folder. Returns its path."""
    path = path_of(name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f"{json.dumps(described(name, result, command), indent=2)}\n".encode())
    return path


def path_of(name: str, folder: Path | None = None) -> Path:
    """Return where `keep` writes a result."""
    return (folder or RESULTS) / f"{name}.json"


def kept(name: str, folder: Path | None = None) -> Result:
    """Read {name}.json back. Raises UserError if nothing is kept yet."""
    try:
        content: Result = json.loads(path_of(name, folder).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: nothing is kept yet; measure first, without --page") from None
    return content
