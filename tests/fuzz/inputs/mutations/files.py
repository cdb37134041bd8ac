"""Other things in the place of an image: pipes, devices, links, huge and closed files, images under odd names."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.inputs.mutations.names import odd
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.pictures import made
from tests.fuzz.inputs.place import Place

Stand = Callable[[Random, Path], object]
"""Makes something at a path where nothing is."""


def _socket(rng: Random, path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # A socket's whole path may have some hundred characters only.
    with socket.socket(socket.AF_UNIX) as made_here:
        made_here.bind(path.name)
    os.chdir(here)


def _sparse(size: int, head: bytes = b"") -> Stand:
    def make(rng: Random, path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, size)

    return make


def _closed(rng: Random, path: Path) -> None:
    path.write_bytes(made("png", "plain", 0))
    path.chmod(0)


THINGS: dict[str, Stand] = {
    "a pipe": lambda rng, path: os.mkfifo(path),
    "a socket": _socket,
    "a folder": lambda rng, path: path.mkdir(),
    "a device of zeros": lambda rng, path: path.symlink_to("/dev/zero"),
    "a device of noise": lambda rng, path: path.symlink_to("/dev/urandom"),
    "a terminal": lambda rng, path: path.symlink_to("/dev/tty"),
    "standard input": lambda rng, path: path.symlink_to("/dev/stdin"),
    "a file of the kernel": lambda rng, path: path.symlink_to(
        rng.choice(("/proc/self/mem", "/proc/self/pagemap", "/proc/self/maps"))
    ),
    "a link to itself": lambda rng, path: path.symlink_to(path.name),
    "a link to nothing": lambda rng, path: path.symlink_to("nowhere"),
    "a link to a folder": lambda rng, path: path.symlink_to(".."),
    "a link to no image": lambda rng, path: path.symlink_to("/etc/passwd"),
    "an empty file": lambda rng, path: path.touch(),
    "5 GB of nothing": _sparse(5 << 30),
    "an image and 5 GB of nothing": _sparse(5 << 30, made("png", "plain", 0)),
    "a JPEG and 1 GB of nothing": _sparse(1 << 30, made("jpg", "plain", 0)),
    "a bitmap and 900 MB of nothing": _sparse(900 << 20, made("bmp", "plain", 0)),
    "a file that nobody may read": _closed,
}


def _in_place(name: str, stand: Stand) -> None:
    @mutation("file", name)
    def act(rng: Random, place: Place) -> str:
        chosen = rng.sample(place.subject.images, rng.choice((1, 1, 2)))
        for image in chosen:
            path = place.data / image
            path.unlink()
            stand(rng, path)
            place.suspects[image] = b""
        return f"{name} at {', '.join(chosen)}"


for _name, _stand in THINGS.items():
    _in_place(_name, _stand)


def _odd_file(rng: Random, place: Place, content: bytes) -> str:
    """Added to a class, so that no other image changes its place because of a name."""
    image = Path(rng.choice(place.subject.images))
    name = odd(rng, image.suffix)
    folder = os.fsencode(place.data / image.parent)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content)
    place.suspects[os.fsdecode(os.fsencode(image.parent) + b"/" + name)] = content
    return repr(name)


@mutation("file")
def damaged_under_an_odd_name(rng: Random, place: Place) -> str:
    return _odd_file(rng, place, rng.choice((b"", b"junk", made("jpg", "plain", 1)[:-40])))


@mutation("file")
def whole_under_an_odd_name(rng: Random, place: Place) -> str:
    return _odd_file(rng, place, made("png", "plain", 2))


@mutation("file")
def of_another_format(rng: Random, place: Place) -> str:
    """Write an image in a format that decoders know and data sets do not take."""
    image = rng.choice(place.subject.images)
    content = rng.choice(
        (
            b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;",
            b"P6 2 2 255\n" + bytes(12),
            b"P6 100000 100000 255\n" + bytes(12),
            b"P5\n# x\n2 2\n65535\n" + bytes(8),
            b"\0\0\0\x0cjP  \r\n\x87\n" + rng.randbytes(200),
            b"\xff\x4f\xff\x51" + rng.randbytes(200),
            b"\0\0\0\x1cftypavif\0\0\0\0" + rng.randbytes(200),
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + rng.randbytes(200),
            b"8BPS\0\1" + rng.randbytes(100),
            b"%PDF-1.4\n",
            b"PK\3\4" + rng.randbytes(100),
            b"II\xbc\1" + rng.randbytes(100),
        )
    )
    place.put(image, content)
    return f"{content[:8]!r} at {image}"
