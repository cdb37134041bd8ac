#!/usr/bin/env python3
"""Health of a container: exit code 0, or 1 and the reason.

python3 launch/container/healthcheck.py [RUNS]

A container that trains is well if the worker that holds the run's folder has shown life within `SILENT_SECONDS`. If
not, it was stopped, or the storage of the runs hangs. A worker that waits in vain for others shows life: it gives up by
itself (`distributed.timeout_seconds`). A container of TensorBoard is well if TensorBoard answers. A node without worker
0, and any other command, is well while its process is there: the container ends with it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from dynsparse.files import json_object, read_bytes
from dynsparse.training.run import names
from dynsparse.training.run.holder import Holder

SILENT_SECONDS = 60.0
"""Longest silence. A start elsewhere takes the folder from a holder that was silent for half as long."""


def silent_workers(runs: Path) -> Iterator[str]:
    """Yield a line for each worker of this container that holds a folder and shows no life."""
    for path in runs.glob(f"*/{names.LOCK}"):
        try:
            content = read_bytes(path)
            alive = datetime.fromisoformat(json_object(content)["alive"])
        except (OSError, ValueError, KeyError, TypeError):  # A run ends, or begins, just now.
            continue
        holder = Holder.decode(content)
        if holder is not None and holder.lives():
            silent = (datetime.now(timezone.utc) - alive).total_seconds()
            if silent > SILENT_SECONDS:
                yield f"{path.parent}: no sign of life of {holder} for {silent:.0f} s"


def mute_tensorboard(command: str) -> Iterator[str]:
    """Yield a line if the container's command, words divided by blanks, is a TensorBoard that does not answer."""
    if not re.search(r"(^|[ /])tensorboard( |$)", command):  # Not an argument, such as log.tensorboard=true.
        return
    port = re.search(r"--port[= ](\d+)", command)
    url = f"http://127.0.0.1:{port[1] if port else 6006}/"
    try:
        with urlopen(url, timeout=5):
            pass
    except HTTPError:
        pass  # An answer, to a path that this one does not serve.
    except OSError as error:
        yield f"TensorBoard does not answer at {url} ({error})"


def main(runs: Path) -> int:
    """Print the problems, or "well", and return the exit code."""
    command = Path("/proc/1/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    problems = [*silent_workers(runs), *mute_tensorboard(command)]
    print("\n".join(problems) or "well")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "runs"))
