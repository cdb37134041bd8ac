"""Something else than a file where a file should be: folders, pipes, devices, links, files full of holes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.fuzz.mutations.registry import mutation
from tests.fuzz.mutations.which import OTHER_FILES, PARTIAL_FILES, RUN_FILES, checkpoints, remove, replace
from tests.fuzz.scene import Scene

Make = Callable[[Random, Path, Scene], None]
"""Makes something at a path where nothing is."""


def folder(rng: Random, path: Path, scene: Scene) -> None:
    path.mkdir()


def full_folder(rng: Random, path: Path, scene: Scene) -> None:
    (path / "checkpoints").mkdir(parents=True)
    scene.stranger(path / "step-000000016.pt")


def pipe(rng: Random, path: Path, scene: Scene) -> None:
    os.mkfifo(path)


def unix_socket(rng: Random, path: Path, scene: Scene) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # A socket's path has 107 bytes at most.
    with suppress(OSError), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


def device(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/dev/null", "/dev/urandom", "/dev/stdin", "/dev/tty")))


def of_this_process(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(rng.choice(("/proc/self/mem", "/proc/self/status", "/proc/self/fd/0", "/proc/self/maps")))


def link_to_a_file(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(scene.outside / "file.txt")


def relative_link(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(os.path.relpath(scene.outside / "file.txt", path.parent))


def link_to_a_checkpoint(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(scene.outside / "whole.pt")


def link_to_a_folder(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(scene.outside / "folder")


def dangling_link(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(scene.outside / "made.txt")


def link_to_itself(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(path.name)


def link_circle(rng: Random, path: Path, scene: Scene) -> None:
    other = path.with_name(f"{path.name}.circle")
    path.symlink_to(other.name)
    other.symlink_to(path.name)


def link_to_its_folder(rng: Random, path: Path, scene: Scene) -> None:
    path.symlink_to(".")


def full_of_holes(rng: Random, path: Path, scene: Scene) -> None:
    path.touch()
    for size in (100 << 30, 20 << 30, 1 << 30):  # Not every file system has files that large.
        with suppress(OSError):
            os.truncate(path, size)
            return


def unreadable(rng: Random, path: Path, scene: Scene) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


MAKERS: tuple[Make, ...] = (
    folder,
    full_folder,
    pipe,
    unix_socket,
    device,
    of_this_process,
    link_to_a_file,
    relative_link,
    link_to_a_checkpoint,
    link_to_a_folder,
    dangling_link,
    link_to_itself,
    link_circle,
    link_to_its_folder,
    full_of_holes,
    unreadable,
)


def put(rng: Random, make: Make, path: Path, scene: Scene) -> None:
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(rng, path, scene)


def _everywhere(make: Make) -> None:
    @mutation("checkpoint", f"is_{make.__name__}")
    def of_checkpoints(rng: Random, scene: Scene) -> str:
        which, paths = checkpoints(rng, scene)
        for path in paths:
            put(rng, make, path, scene)
        return f"{make.__name__} for {which}"

    @mutation("file", f"is_{make.__name__}")
    def of_run_files(rng: Random, scene: Scene) -> str:
        name = rng.choice(RUN_FILES)
        put(rng, make, scene.run / name, scene)
        return f"{make.__name__} for {name}"

    @mutation("partial", f"is_{make.__name__}")
    def of_partial_files(rng: Random, scene: Scene) -> str:
        name = rng.choice((*PARTIAL_FILES, *OTHER_FILES))
        put(rng, make, scene.run / name, scene)
        return f"{make.__name__} for {name}"


for _make in MAKERS:
    _everywhere(_make)


@mutation("checkpoint")
def holes_after_its_bytes(rng: Random, scene: Scene) -> str:
    """A whole checkpoint, then gigabytes of nothing."""
    which, paths = checkpoints(rng, scene)
    for path in paths:
        replace(path, path.read_bytes() if path.exists() else b"")
        with suppress(OSError):
            os.truncate(path, 20 << 30)
    return f"holes after {which}"
