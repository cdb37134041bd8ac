"""Things that are there, where a data set is to be prepared."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from pipelines.sources.parts import UNFINISHED
from tests.fuzz.inputs import preparing
from tests.fuzz.inputs.archive_files import EXPECTED, NAMES
from tests.fuzz.inputs.mutations.files import THINGS
from tests.fuzz.inputs.mutations.names import odd
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.place import Place


def _target(rng: Random, place: Place) -> Path:
    place.data_set = rng.choice(("imagenet", "imagenet", "cifar10", "mnist"))
    return place.home / preparing.OUT


def _paths(place: Place) -> list[str]:
    """Files to make, and the folders that they are in."""
    files = sorted(EXPECTED[place.data_set]())
    above = {str(parent) for file in files for parent in Path(file).parents}
    return [*files[:2], *sorted(above), UNFINISHED, f"{UNFINISHED}/lock"]


def _put(rng: Random, path: Path, name: str) -> None:
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    THINGS[name](rng, path)


@mutation("target")
def things_in_the_way(rng: Random, place: Place) -> str:
    out = _target(rng, place)
    name, thing = rng.choice(_paths(place)), rng.choice(list(THINGS))
    _put(rng, out / name, thing)
    return f"{name} is {thing}"


@mutation("target")
def links_to_elsewhere(rng: Random, place: Place) -> str:
    out = _target(rng, place)
    name = rng.choice(_paths(place))
    path, outside = out / name, place.home / "outside"
    path.parent.mkdir(parents=True, exist_ok=True)
    how = rng.choice(("folder", "file", "new", "hard"))
    if how == "hard" and name != ".":
        os.link(outside / "file.txt", path)
    else:
        path.symlink_to({"folder": outside, "file": outside / "file.txt"}.get(how, outside / "new"))
    return f"{name} is a link to a {how} outside"


@mutation("target")
def drafts_that_were_left(rng: Random, place: Place) -> str:
    drafts = _target(rng, place) / UNFINISHED
    drafts.mkdir(parents=True)
    for number in range(rng.choice((1, 3, 300))):
        (drafts / str(number)).write_bytes(b"half")
    odd_draft = os.path.join(os.fsencode(drafts), odd(rng))
    how = rng.choice(("file", "link", "hard link", "folder", "full folder"))
    if how == "file":
        Path(os.fsdecode(odd_draft)).touch()
    elif how in ("link", "hard link"):
        (os.symlink if how == "link" else os.link)(os.fsencode(place.home / "outside/file.txt"), odd_draft)
    else:
        os.mkdir(odd_draft)
        if how == "full folder":
            Path(os.fsdecode(odd_draft), "x").touch()
    return f"a {how} among the drafts"


@mutation("target")
def done_in_part(rng: Random, place: Place) -> str:
    """Some files whole, some cut, some longer, some gone."""
    out = _target(rng, place)
    for name, content in EXPECTED[place.data_set]().items():
        how = rng.choice(("whole", "whole", "cut", "longer", "gone", "empty"))
        if how != "gone":
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            size = {"whole": len(content), "cut": len(content) // 2, "empty": 0}.get(how, len(content) + 1)
            (out / name).write_bytes((content + b"x")[:size])
    place.completes = True
    return "done in part"


@mutation("target")
def files_of_others(rng: Random, place: Place) -> str:
    out = _target(rng, place)
    folder = out / rng.choice([name for name in _paths(place) if (out / name).suffix == ""][:-2])
    folder = folder if not folder.name.endswith(("ubyte", "_1", "_2")) else folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    name = odd(rng, rng.choice(("", ".JPEG", ".txt"))).replace(b"/", b"")
    path = os.path.join(os.fsencode(folder), name)
    if rng.random() < 0.5:
        os.mkdir(path)
        path = os.path.join(path, b"x.png")
    Path(os.fsdecode(path)).touch()
    return f"{name!r} in {folder.name}"


@mutation("target")
def nothing_odd(rng: Random, place: Place) -> str:
    """The archives and the target are as they should be, as for a command that is killed, or a disk that is full."""
    _target(rng, place)
    place.completes = True
    return f"nothing: {NAMES[place.data_set][0]}"
