"""Changes to the segments of a JPEG."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from tests.fuzz.mutations.damage import Damage, flip
from tests.fuzz.mutations.registry import place

EDITS: dict[str, Damage] = {}
SIDES = (0, 1, 2, 7, 255, 256, 10_000, 30_000, 65_500, 65_535)
_FRAMES = range(0xC0, 0xD0)
_TABLES = (0xC4, 0xC8, 0xCC)
_QUANTISATION, _HUFFMAN, _SCAN, _RESTARTS, _END = 0xDB, 0xC4, 0xDA, 0xDD, 0xD9


def edit(name: str) -> Callable[[Damage], Damage]:
    def add(act: Damage) -> Damage:
        EDITS[name] = act
        return act

    return add


Segment = tuple[int, bytes]
"""A marker, and all up to the next: of a scan its coded pixels, too."""


def segments(content: bytes) -> list[Segment]:
    """Split a file into segments, from the first marker after the start to the end of the file."""
    found, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != _END:
        marker, (length,) = content[at + 1], struct.unpack(">H", content[at + 2 : at + 4])
        end = at + 2 + length
        if marker == _SCAN:
            while end < len(content) - 1 and (
                content[end] != 0xFF or content[end + 1] == 0 or 0xD0 <= content[end + 1] <= 0xD7
            ):
                end += 1
        found.append((marker, content[at + 4 : end]))
        at = end
    return found


def joined(parts: list[Segment], tail: bytes = b"\xff\xd9") -> bytes:
    body = b"".join(b"\xff%c%s" % (marker, _length(marker, content) + content) for marker, content in parts)
    return b"\xff\xd8" + body + tail


def _length(marker: int, content: bytes) -> bytes:
    if marker == _SCAN:  # Its length is that of its header alone, which says how many components it has.
        return struct.pack(">H", 6 + 2 * (content[0] if content else 0))
    return struct.pack(">H", min(len(content) + 2, 65_535))


def _is_frame(marker: int) -> bool:
    return marker in _FRAMES and marker not in _TABLES


def _change(content: bytes, wanted: Callable[[int], bool], change: Callable[[bytes], bytes]) -> bytes:
    return joined([(marker, change(part) if wanted(marker) else part) for marker, part in segments(content)])


@edit("dimensions")
def dimensions(rng: Random, content: bytes) -> bytes:
    sides = struct.pack(">HH", rng.choice(SIDES), rng.choice((20, *SIDES)))
    return _change(content, _is_frame, lambda part: part[:1] + sides + part[5:])


@edit("precision")
def precision(rng: Random, content: bytes) -> bytes:
    return _change(content, _is_frame, lambda part: bytes([rng.choice((0, 1, 7, 9, 10, 12, 16, 255))]) + part[1:])


@edit("components")
def components(rng: Random, content: bytes) -> bytes:
    """Their number, their identifiers, their sampling or their tables."""
    which, value = rng.choice((5, 5, 6, 7, 7, 8, 9, 10, 12, 13)), rng.choice((0, 1, 2, 3, 4, 5, 0x11, 0x44, 0x41, 255))
    return _change(content, _is_frame, lambda part: part[:which] + bytes([value]) + part[which + 1 :])


@edit("sampling")
def sampling(rng: Random, content: bytes) -> bytes:
    values = [rng.choice((0x11, 0x12, 0x21, 0x22, 0x31, 0x14, 0x41, 0x44, 0x33)) for _ in range(4)]

    def change(part: bytes) -> bytes:
        changed = bytearray(part)
        for number, value in enumerate(values):
            if 7 + 3 * number < len(changed):
                changed[7 + 3 * number] = value
        return bytes(changed)

    return _change(content, _is_frame, change)


@edit("kind of frame")
def kind_of_frame(rng: Random, content: bytes) -> bytes:
    """Lossless, arithmetic and hierarchical ones among them."""
    kind = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xCF, 0xF7))
    return joined([(kind if _is_frame(marker) else marker, part) for marker, part in segments(content)])


@edit("without a segment")
def without(rng: Random, content: bytes) -> bytes:
    parts = segments(content)
    del parts[place(rng, len(parts))]
    return joined(parts)


@edit("segments moved")
def moved(rng: Random, content: bytes) -> bytes:
    parts = segments(content)
    parts.insert(place(rng, len(parts)), parts.pop(place(rng, len(parts))))
    return joined(parts)


@edit("a segment twice")
def twice(rng: Random, content: bytes) -> bytes:
    parts = segments(content)
    chosen = parts[place(rng, len(parts))]
    parts[place(rng, len(parts)) : 0] = [chosen] * rng.choice((1, 2, 100))
    return joined(parts)


@edit("thousands of scans")
def scans(rng: Random, content: bytes) -> bytes:
    """Each goes over all the pixels."""
    parts = segments(content)
    last = next((part for part in reversed(parts) if part[0] == _SCAN), parts[-1])
    sides = struct.pack(">HH", *rng.choice(((20, 24), (2_000, 2_000), (1_000, 1_000))))
    parts = [(marker, part[:1] + sides + part[5:] if _is_frame(marker) else part) for marker, part in parts]
    content = joined(parts + [last] * rng.choice((20, 500, 5_000)))
    return _filled(rng, content) if rng.random() < 0.5 else content


@edit("fill bytes and lone markers")
def fill(rng: Random, content: bytes) -> bytes:
    return _filled(rng, content)


def _filled(rng: Random, content: bytes) -> bytes:
    """Add bytes before some markers. Some of them are legal fill bytes, which readers may take for something else."""
    odd = rng.choice((b"\xff", b"\xff" * 9, b"\xff\x01", b"\xff\xd0", b"\xff\x01\xff\xff", b"\0", b"\xff\x02", b"junk"))
    marker = b"\xff" + rng.choice((b"\xda", b"\xdb", b"\xc4", b"\xd9", b"\xc0", b"\xc2"))
    return content.replace(marker, odd + marker, rng.choice((1, 1, 1_000_000)))


@edit("tables damaged")
def tables(rng: Random, content: bytes) -> bytes:
    wanted = rng.choice((_QUANTISATION, _HUFFMAN))
    return _change(content, lambda marker: marker == wanted, lambda part: flip(rng, part))


@edit("header of a scan")
def scan_header(rng: Random, content: bytes) -> bytes:
    return _change(content, lambda marker: marker == _SCAN, lambda part: flip(rng, part[:10]) + part[10:])


@edit("coded pixels damaged")
def pixels(rng: Random, content: bytes) -> bytes:
    return _change(content, lambda marker: marker == _SCAN, lambda part: part[:10] + flip(rng, part[10:]))


@edit("coded pixels cut")
def pixels_cut(rng: Random, content: bytes) -> bytes:
    """Cut off coded pixels, but keep the end marker."""
    keep = rng.random()
    return _change(
        content, lambda marker: marker == _SCAN, lambda part: part[: 10 + round(keep * max(0, len(part) - 10))]
    )


@edit("markers among the pixels")
def markers(rng: Random, content: bytes) -> bytes:
    marker = b"\xff" + bytes([rng.choice((0xD0, 0xD3, 0xD7, 0xD8, 0xD9, 0x01, 0xFF, 0xE1, 0xDA, 0xC4))])

    def change(part: bytes) -> bytes:
        at = 10 + place(rng, max(1, len(part) - 10))
        return part[:at] + marker + part[at:]

    return _change(content, lambda marker: marker == _SCAN, change)


@edit("restart interval")
def restarts(rng: Random, content: bytes) -> bytes:
    interval = struct.pack(">H", rng.choice((0, 1, 2, 3, 100, 65_535)))
    return joined([(_RESTARTS, interval), *[part for part in segments(content) if part[0] != _RESTARTS]])


@edit("without its last bytes")
def no_end(rng: Random, content: bytes) -> bytes:
    return content[: -rng.choice((1, 2, 2, 2, 3, 4, 10))]


@edit("something behind the end")
def behind(rng: Random, content: bytes) -> bytes:
    return content + rng.choice((b"\0" * 100, b"\xff\xd9", rng.randbytes(60), content, b"\xff\xd8\xff"))


@edit("segments of applications")
def applications(rng: Random, content: bytes) -> bytes:
    """Exif, Adobe's colour transform, profiles, comments."""
    added: list[Segment] = [
        (0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([rng.choice((0, 1, 2, 3, 255))])),
        (0xEE, b"Adobe"),
        (0xE1, exif(rng)),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='%d'/>" % rng.randrange(10)),
        (0xE0, b"JFIF\0\1\2\0\0\1\0\1" + bytes([rng.choice((0, 1, 255))] * 2)),
        (0xE2, b"ICC_PROFILE\0" + bytes([rng.choice((0, 1, 2)), rng.choice((0, 1, 255))]) + rng.randbytes(200)),
        (0xE2, b"MPF\0" + rng.randbytes(60)),
        (0xED, b"Photoshop 3.0\x008BIM" + rng.randbytes(60)),
        (0xFE, rng.randbytes(100)),
        (0xFE, bytes(65_533)),
    ]
    chosen = rng.sample(added, rng.choice((1, 1, 2, 4)))
    at = rng.choice((0, 0, 1))
    parts = segments(content)
    return joined([*parts[:at], *chosen * rng.choice((1, 1, 1, 50)), *parts[at:]])


def exif(rng: Random, orientation: int | None = None) -> bytes:
    """A directory that holds an orientation, sound or not."""
    order = rng.choice("<>")
    value = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 65_535)) if orientation is None else orientation
    kind, count = rng.choice(((3, 1), (3, 1), (3, 1), (4, 1), (3, 2), (2, 4), (1, 1), (3, 0), (5, 1), (0, 1), (99, 1)))
    entry = struct.pack(f"{order}HHIHH", 0x0112, kind, count, value, 0)
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, rng.choice((8, 8, 8, 8, 0, 9, 10_000, 2**32 - 1)))
    entries = entry * rng.choice((1, 1, 1, 2))
    count = rng.choice((len(entries) // 12, len(entries) // 12, 0, 100, 65_535))
    body = head + struct.pack(f"{order}H", count) + entries + struct.pack(f"{order}I", rng.choice((0, 0, 8, 2**31)))
    return b"Exif\0\0" + (body if rng.random() < 0.8 else body[: place(rng, len(body))])
