"""Encoded images that are damaged, unusual, or made to harm; all are small, whatever they declare."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.pipelines.pictures import picture

END = b"\xff\xd9"


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# PNG


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def png(width: int, height: int, pixels: bytes = b"", *others: bytes, bits: int = 8, colours: int = 0) -> bytes:
    """A PNG file of compressed `pixels`; `others` are chunks before them."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + chunk(b"IDAT", pixels) + chunk(b"IEND")


def png_without_checksum(image: Image.Image) -> bytes:
    """The last byte of its compressed pixels is missing: DALI refuses it, Pillow does not, for all pixels are there."""
    rows = np.pad(np.array(image.convert("L")), ((0, 0), (1, 0)))
    return png(image.width, image.height, zlib.compress(rows.tobytes())[:-1])


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def of_many_scans(scans: int, image: Image.Image | None = None) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    whole = encoded(image or picture(64, 48, 1), progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + END


def behind_fill_bytes(scans: int) -> bytes:
    """Segments with a fill byte before each marker, which is valid."""
    whole = of_many_scans(scans)
    return whole[:2] + whole[2:].replace(b"\xff\xda", b"\xff\xff\xda")


def declaring(width: int, height: int) -> bytes:
    """A JPEG whose header was changed."""
    whole = bytearray(encoded(picture(64, 48, 1)))
    struct.pack_into(">HH", whole, whole.index(b"\xff\xc0") + 5, height, width)
    return bytes(whole)


# TIFF, BMP, WebP


def tiff(entries: dict[int, tuple[int, int, int]], *, big: bool = False, order: str = "<") -> bytes:
    """A header and a directory: type, count and value of each tag."""
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HL", 42, 8)
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    form = order + ("HHQQ" if big else "HHLL")
    return mark + head + count + b"".join(struct.pack(form, tag, *entry) for tag, entry in entries.items()) + bytes(8)


def plain_tiff(width: int, height: int, **more: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """The tags of a grey image without pixels."""
    long = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height % 2**32}
    return {tag: (4, 1, value) for tag, value in long.items()} | {int(tag[1:]): entry for tag, entry in more.items()}


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<LLL", 74, 0, 54) + struct.pack("<LllHHLLllLL", 40, width, height, 1, 24, *[0] * 6)


def webp(width: int, height: int) -> bytes:
    """The extended format's header alone."""
    body = b"VP8X" + struct.pack("<L", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


SIDE = 2**31 - 1
DECLARED = r"declares [\d,]+ x [\d,]+ pixels, more than the 60,000,000 of data\.most_pixels"
_MAKERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "3,000 scans": (lambda: of_many_scans(3000), r"has 3,000 scans, more than 100; decoding takes minutes"),
    "3,000 scans behind fill bytes": (
        lambda: behind_fill_bytes(3000),
        r"has 3,000 scans, more than 100; decoding takes minutes",
    ),
    "3,000 scans behind a marker alone": (
        lambda: of_many_scans(3000).replace(b"\xff\xda", b"\xff\x01\xff\xff\xff\xda", 1),
        r"has 3,000 scans, more than 100; decoding takes minutes",
    ),
    "SOF of 30,000 a side": (lambda: declaring(30_000, 30_000), DECLARED),
    "1-bit PNG of 20,000 a side": (lambda: png(20_000, 20_000, zlib.compress(bytes(50_000_000), 1), bits=1), DECLARED),
    "PNG of 2^31 a side": (lambda: png(SIDE, SIDE), DECLARED),
    "TIFF of 2^31 a side": (lambda: tiff(plain_tiff(SIDE, SIDE)), DECLARED),
    "big TIFF of 2^31 a side": (lambda: tiff(plain_tiff(SIDE, SIDE), big=True), DECLARED),
    "BMP of 2^31 a side": (lambda: bmp(SIDE, SIDE), DECLARED),
    "WebP of 16,383 a side": (lambda: webp(16_383, 16_383), DECLARED),
    "TIFF of a huge tile": (
        lambda: tiff(plain_tiff(64, 64, _322=(4, 1, 30_000), _323=(4, 1, 30_000))),
        r"has tiles of 30,000 x 30,000 pixels, more than the 60,000,000 of data\.most_pixels",
    ),
    "TIFF of a huge tag": (
        lambda: tiff(plain_tiff(64, 64, _700=(4, 2**31, 8))),
        r"declares 2,147,483,648 values of TIFF tag 700, which is damage, or meant to harm",
    ),
    "TIFF whose tags share their values": (
        lambda: tiff(dict.fromkeys(range(1000, 1500), (7, 5000, 8)), order=">"),
        r"declares 5,000 values of TIFF tag 1001, which is damage, or meant to harm",
    ),
    "TIFF of many tags": (
        lambda: tiff(dict.fromkeys(range(5000), (7, 1, 8))),
        r"has 5,000 TIFF tags, more than 4,096",
    ),
    "PNG with a transparent colour and no palette": (
        lambda: png(8, 8, zlib.compress(bytes(72)), chunk(b"tRNS", b"\0"), colours=3),
        r"cannot be decoded: it is truncated or damaged \(AssertionError\)",
    ),
    "PNG text of 20 MB": (
        lambda: png(8, 8, zlib.compress(bytes(72)), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20 << 20)))),
        r"cannot be decoded: it is truncated or damaged \(ValueError: Decompressed data too large .*\)",
    ),
    "PNG profile of 20 MB": (
        lambda: png(8, 8, zlib.compress(bytes(72)), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(20 << 20)))),
        r"cannot be decoded: it is truncated or damaged \(ValueError: Decompressed data too large .*\)",
    ),
}
BOMBS = {name: why for name, (_, why) in _MAKERS.items()}
"""Reasons of refusal by name."""


def _sized(size: int) -> Callable[[Path], None]:
    """Writes a file of nothing but holes."""

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            file.truncate(size)

    return write


SPECIALS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "sparse file of 5 GB": _sized(5 << 30),
    "no image, of 200 MB": _sized(200 << 20),
}
"""Makers of what is no regular file, too large, or no image, at a path."""


@cache
def bomb(name: str) -> bytes:
    return _MAKERS[name][0]()


# mutations


@cache
def seeds() -> tuple[bytes, ...]:
    image = picture(61, 47, 3)
    floats = Image.fromarray(np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30))
    jpegs: list[dict[str, object]] = [
        {}, {"progressive": True}, {"subsampling": 0}, {"exif": turned()}, {"restart_marker_blocks": 2},
        {"comment": b"a"}, {"xmp": b'<x tiff:Orientation="3"/>'}, {"icc_profile": b"x" * 300},
    ]  # fmt: skip
    return (
        *(encoded(image, quality=85, **options) for options in jpegs),
        encoded(image.convert("L")),
        encoded(image.convert("CMYK")),
        encoded(image, "PNG"),
        encoded(image.convert("P"), "PNG"),
        encoded(image.convert("RGBA"), "PNG", exif=turned()),
        encoded(image, "WEBP"),
        encoded(image, "WEBP", lossless=True, exif=turned()),
        encoded(image, "BMP"),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(floats, "TIFF"),
    )


def mutated(rng: random.Random) -> bytes:
    """One of the seeds with a few bytes changed, cut, moved, or those of another in place of its own."""
    content = bytearray(rng.choice(seeds()))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place, other = rng.randrange(len(content)), rng.randrange(len(content))
        match rng.randrange(7):
            case 0:
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                content[place] = rng.choice((0, 255, 0xD9, 0xDA, 0xC0, 0xE1, rng.randrange(256)))
            case 2:
                del content[max(place, 4) :]
            case 3:
                del content[place : min(place + rng.randrange(40), len(content) - 4)]
            case 4:
                content[place:place] = content[other : other + rng.randrange(200)]
            case 5:
                source = rng.choice(seeds())
                content[max(place, 4) :] = source[rng.randrange(len(source)) :]
            case 6:
                content[place:place] = bytes([0xFF, rng.choice((0xD9, 0xDA, 0xD0, 0xC0, 0xC4, 0xDB, 0xDD, 0xE1, 0xFE))])
    return bytes(content)
