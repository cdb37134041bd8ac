"""The addresses on which processes listen, from /proc/net: numbers as the kernel writes them, in hexadecimal."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path

_LISTENS = "0A"


def listening(process: int | str = "self") -> dict[str, str]:
    """The inodes and addresses of all sockets that listen in a process's network."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS:
                found[fields[9]] = _address(fields[1].partition(":")[0])
    return found


def of(processes: Iterable[int]) -> list[str]:
    """The addresses on which these processes listen."""
    known, found = listening(), []
    for pid in processes:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(file))
                if match and match[1] in known:
                    found.append(known[match[1]])
    return found


def _address(text: str) -> str:
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))
