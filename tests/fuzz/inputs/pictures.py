"""Small whole images of every format and mode, to be damaged."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

SIZE = (24, 20)


def picture(seed: int) -> Image.Image:
    """Smooth, as photographs are."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(SIZE, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _grey(image: Image.Image, bits: int) -> Image.Image:
    levels = np.asarray(image.convert("L"))
    if bits == 16:
        return Image.fromarray(levels.astype(np.uint16) * 257)
    return Image.fromarray(levels.astype(np.float32) / 255)


Make = Callable[[Image.Image], bytes]
KINDS: dict[str, dict[str, Make]] = {
    "jpg": {
        "plain": lambda image: encoded(image, "JPEG", quality=90),
        "progressive": lambda image: encoded(image, "JPEG", progressive=True),
        "full colour": lambda image: encoded(image, "JPEG", subsampling=0),
        "grey": lambda image: encoded(image.convert("L"), "JPEG"),
        "CMYK": lambda image: encoded(image.convert("CMYK"), "JPEG"),
        "RGB": lambda image: encoded(image, "JPEG", keep_rgb=True),
        "restarts": lambda image: encoded(image, "JPEG", restart_marker_blocks=1),
        "turned": lambda image: encoded(image, "JPEG", exif=_turned(6)),
    },
    "png": {
        "plain": lambda image: encoded(image, "PNG"),
        "alpha": lambda image: encoded(image.convert("RGBA"), "PNG"),
        "palette": lambda image: encoded(image.convert("P"), "PNG"),
        "palette, transparent": lambda image: encoded(image.convert("P"), "PNG", transparency=3),
        "grey": lambda image: encoded(image.convert("L"), "PNG"),
        "grey and alpha": lambda image: encoded(image.convert("LA"), "PNG"),
        "16 bit": lambda image: encoded(_grey(image, 16), "PNG"),
        "1 bit": lambda image: encoded(image.convert("1"), "PNG"),
        "turned": lambda image: encoded(image, "PNG", exif=_turned(8)),
    },
    "webp": {
        "lossy": lambda image: encoded(image, "WEBP"),
        "lossless": lambda image: encoded(image, "WEBP", lossless=True),
        "alpha": lambda image: encoded(image.convert("RGBA"), "WEBP"),
        "turned": lambda image: encoded(image, "WEBP", exif=_turned(3)),
        "lossless, turned": lambda image: encoded(image, "WEBP", lossless=True, exif=_turned(6)),
        "animated": lambda image: encoded(image, "WEBP", save_all=True, append_images=[picture(9)]),
    },
    "bmp": {
        "plain": lambda image: encoded(image, "BMP"),
        "palette": lambda image: encoded(image.convert("P"), "BMP"),
        "1 bit": lambda image: encoded(image.convert("1"), "BMP"),
        "alpha": lambda image: encoded(image.convert("RGBA"), "BMP"),
        "grey": lambda image: encoded(image.convert("L"), "BMP"),
    },
    "tif": {
        "plain": lambda image: encoded(image, "TIFF"),
        "LZW": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
        "deflate": lambda image: encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "JPEG": lambda image: encoded(image, "TIFF", compression="jpeg"),
        "packbits": lambda image: encoded(image, "TIFF", compression="packbits"),
        "16 bit": lambda image: encoded(_grey(image, 16), "TIFF"),
        "1 bit": lambda image: encoded(image.convert("1"), "TIFF"),
        "1 bit, group 4": lambda image: encoded(image.convert("1"), "TIFF", compression="group4"),
        "float": lambda image: encoded(_grey(image, 32), "TIFF"),
        "palette": lambda image: encoded(image.convert("P"), "TIFF"),
        "CMYK": lambda image: encoded(image.convert("CMYK"), "TIFF"),
        "alpha": lambda image: encoded(image.convert("RGBA"), "TIFF"),
    },
}
"""Pictures by the end of a file's name, then by their special property."""


@cache
def made(suffix: str, kind: str, seed: int) -> bytes:
    return KINDS[suffix][kind](picture(seed))


def drawn(rng: Random, suffix: str) -> bytes:
    """One of the format: the first kind, which is the most frequent among users, half of the time."""
    kinds = list(KINDS[suffix])
    kind = kinds[0] if rng.random() < 0.4 else rng.choice(kinds)
    return made(suffix, kind, rng.randrange(4))
