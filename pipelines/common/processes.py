"""Processes that are started without a fork: a forked one could wait for a lock of another thread."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from pipelines.common.errors import UserError

LONGEST_TMPDIR = (107 if sys.platform == "linux" else 103) - len("/pymp-12345678/listener-12345678")
"""Bytes of the path of a folder in which a server's socket still has a path that the system takes."""


def clean_processes(preload: Sequence[str] = ()) -> Any:
    """Return a context of multiprocessing. Where there is a server, it imports the modules once for all processes.

    Raises UserError if the folder for temporary files has too long a path for the server's socket.
    """
    folder = tempfile.gettempdir()
    if (size := len(os.fsencode(folder))) > LONGEST_TMPDIR:
        raise UserError(
            f"TMPDIR is {folder}, of {size} bytes: sockets of processes need one of at most {LONGEST_TMPDIR}; set "
            "TMPDIR to a folder with a shorter path"
        )
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    return context
