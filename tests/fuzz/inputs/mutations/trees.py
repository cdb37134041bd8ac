"""Folders that are no tree of classes with images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

from tests.fuzz.inputs.mutations.files import THINGS
from tests.fuzz.inputs.mutations.names import odd
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.pictures import made
from tests.fuzz.inputs.place import Place
from tests.fuzz.inputs.subjects import CLASSES

PARTS = ("train", "val")
_IMAGE = "png"


def _class(rng: Random, place: Place) -> Path:
    return place.data / rng.choice(PARTS) / rng.choice(CLASSES)


def _image(folder: Path | bytes, name: str = "9.png") -> None:
    with open(os.path.join(os.fsencode(folder), name.encode()), "wb") as file:
        file.write(made(_IMAGE, "plain", 1))


@mutation("tree")
def a_class_under_an_odd_name(rng: Random, place: Place) -> str:
    """Rename a class to an odd name, in both parts or in one only."""
    name, old = odd(rng), rng.choice(CLASSES)
    parts = PARTS if rng.random() < 0.7 else (rng.choice(PARTS),)
    for part in parts:
        folder = os.fsencode(place.data / part)
        os.rename(os.path.join(folder, old.encode()), os.path.join(folder, name))
    return f"{old} is {name!r} in {', '.join(parts)}"


@mutation("tree")
def one_more_class(rng: Random, place: Place) -> str:
    name = rng.choice((odd(rng), b"dog", b"__MACOSX", b".hidden", b"Ape", b"ape "))
    parts = PARTS if rng.random() < 0.5 else (rng.choice(PARTS),)
    filled = rng.random() < 0.6
    for part in parts:
        folder = os.path.join(os.fsencode(place.data / part), name)
        os.mkdir(folder)
        if filled:
            _image(folder)
    if rng.random() < 0.5:
        place.config["data"]["number_of_classes"] = 4
    return f"{name!r} in {', '.join(parts)}, {'with' if filled else 'without'} an image"


@mutation("tree")
def a_class_gone(rng: Random, place: Place) -> str:
    folder = _class(rng, place)
    how = rng.choice(("gone", "empty", "hidden", "in capitals"))
    if how == "in capitals":
        folder.rename(folder.with_name(folder.name.upper()))
    elif how == "hidden":
        folder.rename(folder.with_name(f".{folder.name}"))
    else:
        shutil.rmtree(folder)
        if how == "empty":
            folder.mkdir()
    return f"{folder.relative_to(place.data)} is {how}"


@mutation("tree")
def a_class_is_no_folder(rng: Random, place: Place) -> str:
    folder, name = _class(rng, place), rng.choice(list(THINGS))
    shutil.rmtree(folder)
    THINGS[name](rng, folder)
    return f"{folder.relative_to(place.data)} is {name}"


@mutation("tree")
def a_part_is_no_folder(rng: Random, place: Place) -> str:
    folder, name = place.data / rng.choice(PARTS), rng.choice(list(THINGS))
    shutil.rmtree(folder)
    THINGS[name](rng, folder)
    return f"{folder.name} is {name}"


@mutation("tree")
def the_root_is_no_folder(rng: Random, place: Place) -> str:
    name = rng.choice(list(THINGS))
    shutil.rmtree(place.data)
    THINGS[name](rng, place.data)
    return f"data is {name}"


@mutation("tree")
def parts_of_other_names(rng: Random, place: Place) -> str:
    """Name val valid, validation or test, or make two of them, or none."""
    names = rng.sample(("valid", "validation", "test", "val", "training"), rng.choice((0, 1, 1, 2, 3)))
    moved = place.data / "moved"
    (place.data / "val").rename(moved)
    for name in names:
        shutil.copytree(moved, place.data / name)
    shutil.rmtree(moved)
    if rng.random() < 0.3:
        place.config["data"]["validation_samples"] = rng.choice((3, 6, 11, 12, 100))
    return (
        f"val is {' and '.join(names) or 'gone'}, {place.config['data'].get('validation_samples', 0)} samples held out"
    )


@mutation("tree")
def deeper_folders(rng: Random, place: Place) -> str:
    """Images in subfolders of a class, to any depth."""
    folder, depth = _class(rng, place), rng.choice((1, 2, 10, 200))
    if rng.random() < 0.5:
        shutil.rmtree(folder)
        folder.mkdir()
    for _ in range(depth):
        folder /= "d" * rng.choice((1, 10))
    folder.mkdir(parents=True)
    _image(folder)
    return f"an image {depth} folders deep"


@mutation("tree")
def links_among_folders(rng: Random, place: Place) -> str:
    """Link to folders above, beside and outside: some links are loops."""
    folder = _class(rng, place)
    to = rng.choice(("..", ".", "../..", str(place.home / "outside"), "loop", *CLASSES))
    if rng.random() < 0.3:
        shutil.rmtree(folder)
        folder.symlink_to(to)
    else:
        (folder / rng.choice(("loop", "0000.png.d"))).symlink_to(to)
    return f"{folder.relative_to(place.data)} and a link to {to}"


@mutation("tree")
def odd_files_beside(rng: Random, place: Place) -> str:
    """Add files that are no images, or lie where none should."""
    where = rng.choice((place.data, place.data / "train", _class(rng, place)))
    name = rng.choice(
        (".DS_Store", "Thumbs.db", "README.txt", "9.gif", "9.jpg", "9.JPG", ".png", "x.png.part", "_9.png")
    )
    path = where / name
    if rng.random() < 0.5:
        path.write_bytes(made(_IMAGE, "plain", 1))
    else:
        rng.choice(list(THINGS.values()))(rng, path)
    return f"{path.relative_to(place.data)}"


@mutation("tree")
def a_path_of_another_kind(rng: Random, place: Place) -> str:
    paths = (
        "data/",
        "./data/../data",
        "data/train",
        "nowhere",
        "",
        ".",
        "/",
        "data\0",
        "~",
        "$HOME",
        "da\nta",
        "x" * 5_000,
        "\ud800",
    )
    chosen = rng.choice((*paths, "link", "odd"))
    if chosen == "link":
        (place.home / "link").symlink_to("data")
    if chosen == "odd":
        name = odd(rng)
        os.rename(place.data, os.path.join(os.fsencode(place.home), name))
        chosen = os.fsdecode(name)
    place.config["data"]["path"] = chosen
    return f"data.path is {chosen[:50]!r}"
