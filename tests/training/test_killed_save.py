"""SIGKILL while checkpoints are written: whatever was whole before is whole after, and no name leads to half a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from dynsparse.errors import UserError
from dynsparse.training import checkpoint
from dynsparse.training.checkpoint import CheckpointFolder, read
from dynsparse.training.checkpoint import format as checkpoint_format
from tests.forks import CONTEXT


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"progress": {"step": step}, "weights": {"a": torch.randn(5000, generator=generator)}}


class Mortal:
    """Ends this process by SIGKILL before the nth thing that it does to the disk."""

    def __init__(self, n: int) -> None:
        self.left = n

    def count(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def before(self, act: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count()
            return act(*arguments, **options)

        return counted

    def save_deflated(self, content: Any, file: IO[bytes]) -> None:
        """Each piece that is written reaches the disk in two halves."""
        write = file.write

        def in_halves(data: Any) -> int:
            data = bytes(data)
            for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                self.count()
                write(part)
                file.flush()
            return len(data)

        file.write = in_halves  # type: ignore[method-assign]
        save_deflated(content, file)


save_deflated = checkpoint_format.save_deflated


def save_until_killed(folder: Path, n: int) -> None:
    """Saves after steps 10 and 15, each the best so far, in the background, to a folder that has step 5."""
    CheckpointFolder(folder, keep=2).save(state(5), 5, best=True)
    mortal = Mortal(n)
    checkpoint_format.save_deflated = mortal.save_deflated
    for name in ("replace", "link", "fsync"):
        setattr(os, name, mortal.before(getattr(os, name)))
    Path.unlink = mortal.before(Path.unlink)  # type: ignore[method-assign]
    checkpoints = CheckpointFolder(folder, keep=2)
    for step in (10, 15):
        checkpoints.begin(lambda step=step: state(step), step, best=True)  # type: ignore[misc]
    checkpoints.wait()


def kill_everywhere(folder: Path) -> None:
    """A process for each n, until one lives to the end. Forked from this one, which has no other threads."""
    for n in range(1000):
        if (pid := os.fork()) == 0:
            save_until_killed(folder / f"{n:03}", n)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            return


def test_killed_before_each_thing_that_a_save_does(tmp_path: Path) -> None:
    """Before every write, sync, rename, link and removal of two saves, one after the other."""
    process = CONTEXT.Process(target=kill_everywhere, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    seen = [5]
    for folder in sorted(tmp_path.iterdir()):
        found = CheckpointFolder(folder, keep=2).newest()
        assert found is not None
        newest = found[1]["progress"]["step"]
        latest, best = (read(folder / f"{name}.pt")["progress"]["step"] for name in ("latest", "best"))
        assert best <= latest <= newest, folder
        assert newest >= seen[-1], "later kills lose no more"
        seen.append(newest)
        # The process that comes next goes on, and leaves nothing of this one behind.
        CheckpointFolder(folder, keep=2).save(state(20), 20, best=True)
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["best.pt", "latest.pt", f"step-{newest:09d}.pt", "step-000000020.pt"]
    assert len(seen) > 40
    assert set(seen) == {5, 10, 15}
    assert not (tmp_path / "999").exists(), "the last one lived"


def test_what_a_killed_save_left_goes_when_the_run_is_resumed(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path, keep=2).save(state(5), 5)
    (tmp_path / "step-000000010.pt.0123abcd.partial").write_bytes(b"half a file")
    checkpoint.set_aside_after(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "step-000000005.pt"]


def test_half_a_file_under_a_whole_ones_name_would_be_found(tmp_path: Path) -> None:
    """The test above relies on it: `read` refuses each beginning of a file."""
    CheckpointFolder(tmp_path, keep=2).save(state(5), 5)
    path = tmp_path / "step-000000005.pt"
    whole = path.read_bytes()
    for kept in range(0, len(whole), 97):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="damaged"):
            read(path)
