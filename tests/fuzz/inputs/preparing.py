"""Programs of the fuzzer's own: `python -m pipelines prepare` on small archives, killed, or on a disk that is full."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from threading import Lock, get_ident
from typing import Any

OUT = Path("out/made")


def prepare(words: list[str]) -> int:
    import pipelines.__main__
    from tests.fuzz.inputs import archive_files

    archive_files.make_official(Path("data"))
    return pipelines.__main__.PROGRAM.run(["prepare", *words])


def killed(writes: int, words: list[str]) -> int:
    """Prepare, and end this process within a write. Its exit code is then 0, too: a signal would be a fault."""
    from pipelines.tools.prepare.place import Place

    write, lock, left = Place.write, Lock(), [writes]

    def counted(self: Place, target: Path, parts: Any) -> None:
        with lock:
            left[0] -= 1
            if left[0] < 0:
                (self.drafts / str(get_ident())).write_bytes(b"half")
                os._exit(0)
        write(self, target, parts)

    Place.write = counted  # type: ignore[method-assign]
    return prepare(words)


def full(size: int, words: list[str]) -> int:
    """Prepare where no file may have more than `size` bytes, as a stand-in for a disk without room."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return prepare(words)


def program(line: list[str]) -> int:
    """Run `prepare WORDS`, `killed N WORDS` or `full BYTES WORDS`."""
    if line[0] == "prepare":
        return prepare(line[1:])
    return (killed if line[0] == "killed" else full)(int(line[1]), line[2:])
