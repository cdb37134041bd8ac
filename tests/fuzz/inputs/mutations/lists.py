"""The lists beside the data: samples to leave out, names of classes."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from tests.fuzz.inputs.mutations.files import THINGS
from tests.fuzz.inputs.mutations.names import STEMS
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.place import Place

_ENCODINGS = ("utf-16", "utf-8-sig", "utf-32")


def _excluding(rng: Random, place: Place, content: bytes) -> None:
    (place.home / "exclude.txt").write_bytes(content)
    place.config["data"]["exclude"] = rng.choice(("exclude.txt", "./exclude.txt", str(place.home / "exclude.txt")))


@mutation("list")
def some_left_out(rng: Random, place: Place) -> str:
    """A sound list, as a scan writes it; it may leave too few."""
    names = rng.sample(place.subject.images, rng.choice((1, 2, 5, len(place.subject.images))))
    _excluding(rng, place, b"# a comment\n" + "".join(f"{name}\n" for name in names).encode())
    return f"{len(names)} left out"


@mutation("list")
def odd_lines(rng: Random, place: Place) -> str:
    image = rng.choice(place.subject.images).encode()
    lines = [
        b"", b" ", b"#", b"\0", image + b"\r", image + b" ", b" " + image, b"./" + image, b"../data/" + image,
        b"train//" + image, b"/" + image, image + b"\n" + image, b"train", b"train/", b"train/ape", image[:-1],
        image.upper(), b"x" * 10**6, *(b"train/ape/" + stem for stem in STEMS), rng.randbytes(100),
    ]  # fmt: skip
    chosen = rng.sample(lines, rng.choice((1, 1, 3)))
    _excluding(rng, place, b"\n".join([*chosen, b""]))
    return f"lines {chosen!r:.200}"


@mutation("list")
def odd_encoding(rng: Random, place: Place) -> str:
    text, encoding = "\n".join([*place.subject.images[:2], ""]), rng.choice(_ENCODINGS)
    _excluding(rng, place, text.encode(encoding))
    return f"exclude.txt in {encoding}"


@mutation("list")
def many_lines(rng: Random, place: Place) -> str:
    _excluding(rng, place, b"train/ape/no.png\n" * 200_000 + b"".join(b"train/ape/%d.png\n" % i for i in range(50_000)))
    return "exclude.txt of many lines"


@mutation("list")
def no_list(rng: Random, place: Place) -> str:
    name = rng.choice(list(THINGS))
    _excluding(rng, place, b"")
    path = place.home / "exclude.txt"
    path.unlink()
    THINGS[name](rng, path)
    return f"exclude.txt is {name}"


@mutation("list")
def no_path(rng: Random, place: Place) -> str:
    place.config["data"]["exclude"] = chosen = rng.choice(
        ("", ".", "/", "nowhere", "x\0y", "x" * 5_000, "data", "\x1b[31m", "\ud800", "~", "a\nb")
    )
    return f"data.exclude is {chosen[:40]!r}"


def _classes(place: Place) -> Path:
    return place.data / "classes.txt"


@mutation("list")
def names_of_classes(rng: Random, place: Place) -> str:
    """Write odd names of classes beside shards. Beside a folder of images the file means nothing."""
    names = list(rng.sample(STEMS, 3))
    content = rng.choice(
        (b"", b"ape\n", b"ape\nbee\ncat\ndog\n", b"ape\nape\nape\n", b"\n\n\n", b"ape\r\nbee\r\ncat\r\n",
         b"ape\nbee\ncat", b"\n".join([*names, b""]), rng.randbytes(300), bytes(30), b"x" * 10**7,
         "ape\nbee\ncat\n".encode("utf-16"))
    )  # fmt: skip
    _classes(place).write_bytes(content)
    return f"classes.txt is {content[:60]!r}"


@mutation("list")
def classes_are_no_file(rng: Random, place: Place) -> str:
    name = rng.choice(list(THINGS))
    if os.path.lexists(_classes(place)):
        _classes(place).unlink()
    THINGS[name](rng, _classes(place))
    return f"classes.txt is {name}"
