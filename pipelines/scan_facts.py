"""What a scan says about one image: why it cannot be had, or what is remarkable about it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipelines.loaders import Loader, read_fault
from pipelines.sources import Bytes, Encoded, digest

HUGE = 100_000_000
"""Pixels."""

Check = Callable[[Encoded, int], str | None]
"""Why a sample cannot be had, or None. It must be possible to pickle it."""

_MAGIC = {
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF....WEBP",
    "bmp": rb"BM",
    "tiff": rb"II\*\0|MM\0\*",
}
"""How files begin."""
_FORMATS = {"jpg": "jpeg", "tif": "tiff"}
"""Of extensions that are not the format's name."""


@dataclass(frozen=True)
class Facts:
    """What there is to say about one image."""

    fault: str | None
    digest: int = 0
    """Of the file's content, 64 bits."""
    format: str = "other"
    """By content."""
    size: tuple[int, int] | None = None
    """Width and height as stored; None if the header tells none."""
    odd: tuple[str, ...] = ()
    """What is unusual about it, if fine: keys of `scan_report.ODD`."""


@dataclass(frozen=True)
class InMemory:
    """Another source's sample as it was read, so that it need not be read twice."""

    source: Encoded
    content: Bytes

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.source.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def listing(self) -> str:
        return self.source.listing

    def name(self, index: int) -> str:
        return self.source.name(index)

    def encoded(self, index: int) -> Bytes:
        return self.content


@dataclass(frozen=True)
class Decodes:
    """The check that decodes as training will."""

    loader: str

    def __call__(self, source: Encoded, index: int) -> str | None:
        return _loader(self.loader).fault(source, index)


@cache
def _loader(name: str) -> Loader:
    kind: type[Loader] = import_module(module_of(name)).THE_LOADER
    return kind(threads=1, device_id=None, half=False, channels_last=False)


def module_of(loader: str) -> str:
    return f"pipelines.{loader}_loader"


def examine(source: Encoded, index: int, check: Check) -> Facts:
    try:
        content = source.encoded(index)
    except OSError as error:
        return Facts(read_fault(error))
    try:
        fault = check(InMemory(source, content), index)
    except Exception as error:  # noqa: BLE001 - one file must not end the scan of a million
        fault = f"cannot be checked ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if fault is not None:
        return Facts(fault)
    found = _format(content[:16].tobytes())
    extension = source.name(index).rpartition(".")[2].lower()
    odd = ("misnamed",) if _FORMATS.get(extension, extension) != found else ()
    try:
        size, more = _header(content)
    except Exception:  # noqa: BLE001 - it has been decoded; PIL raises nearly anything at what it does not know
        size, more = None, ()
    return Facts(None, int(digest(content.tobytes()), 16), found, size, odd + more)


def _format(head: bytes) -> str:
    return next((name for name, start in _MAGIC.items() if re.match(start, head, re.DOTALL)), "other")


def _header(content: Bytes) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Width and height, and what is odd, without decoding."""
    with Image.open(io.BytesIO(content.data)) as image:
        # For EXIF data that may stand behind its pixels, PIL would decode a PNG.
        turned = (
            image.getexif().get(ExifTags.Base.Orientation, 1) if image.format != "PNG" or "exif" in image.info else 1
        )
        width, height = image.size
        odd = {
            "greyscale": image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;"),
            "cmyk": image.mode == "CMYK",
            "transparent": image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
            "turned": turned in range(2, 9),
            "huge": width * height > HUGE,
        }
    return (width, height), tuple(name for name, is_so in odd.items() if is_so)
