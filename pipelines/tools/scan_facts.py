"""What a scan says about one image: why it cannot be had, or what is remarkable about it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.images.encoded import MOST_BYTES, MOST_PIXELS, Bytes, most_bytes
from pipelines.images.headers import format_of
from pipelines.images.reference import orientation, read_fault
from pipelines.sources.base import Encoded, digest
from pipelines.sources.faults import fault

HUGE = 100_000_000
"""Pixels."""

Check = Callable[[Encoded, int], str | None]
"""Why a sample cannot be had, or None. It must be possible to pickle it."""

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

    def encoded(self, index: int, most: int = MOST_BYTES) -> Bytes:
        return self.content


@dataclass(frozen=True)
class Decodes:
    """The check that decodes as training will, whichever loader it has."""

    most_pixels: int = MOST_PIXELS

    def __call__(self, source: Encoded, index: int) -> str | None:
        return fault(source, index, self.most_pixels)


def examine(source: Encoded, index: int, check: Check) -> Facts:
    most = most_bytes(check.most_pixels) if isinstance(check, Decodes) else MOST_BYTES
    try:
        content = source.encoded(index, most)
    except OSError as error:
        return Facts(read_fault(error))
    try:
        reason = check(InMemory(source, content), index)
    except Exception as error:  # noqa: BLE001 - one file must not end the scan of a million
        reason = f"cannot be checked ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if reason is not None:
        return Facts(reason)
    found = (format_of(content) or "other").lower()
    extension = source.name(index).rpartition(".")[2].lower()
    odd = ("misnamed",) if _FORMATS.get(extension, extension) != found else ()
    try:
        size, more = _header(content)
    except Exception:  # noqa: BLE001 - it has been decoded; PIL raises nearly anything at what it does not know
        size, more = None, ()
    return Facts(None, int(digest(content.tobytes()), 16), found, size, odd + more)


def _header(content: Bytes) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Width and height, and what is odd, without decoding."""
    with Image.open(io.BytesIO(content.data)) as image:
        # For EXIF data that may stand behind its pixels, PIL would decode a PNG.
        turned = orientation(image) if image.format != "PNG" or "exif" in image.info else 1
        width, height = image.size
        odd = {
            "greyscale": image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;"),
            "cmyk": image.mode == "CMYK",
            "transparent": image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
            "turned": turned != 1,
            "huge": width * height > HUGE,
        }
    return (width, height), tuple(name for name, is_so in odd.items() if is_so)
