"""Facts of a scan about one image: why it is bad, or what is unusual about it."""

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
from pipelines.sources.faults import fault, read
from pipelines.sources.walking import EXTENSIONS

HUGE = 100_000_000
"""Pixels of an image that is called huge."""

Check = Callable[[Encoded, int], str | None]
"""Function of a sample that returns why it is bad, or None. It must be picklable."""

_FORMATS = {"jpg": "jpeg", "tif": "tiff"}
"""Formats of extensions that are not the format's name."""


@dataclass(frozen=True)
class Facts:
    """Facts about one image."""

    fault: str | None
    digest: int = 0
    """Checksum of the file's content, 64 bits."""
    format: str = "other"
    """Format by content."""
    size: tuple[int, int] | None = None
    """Width and height as stored; None if the header tells none."""
    odd: tuple[str, ...] = ()
    """Unusual features of a good image: keys of `scan_report.ODD`."""


@dataclass(frozen=True)
class InMemory:
    """A source whose sample has been read already, so that it is not read twice."""

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

    def reopen(self) -> None:
        """No file is kept open."""


@dataclass(frozen=True)
class Decodes:
    """The check that decodes as training does, with any loader."""

    most_pixels: int = MOST_PIXELS

    def __call__(self, source: Encoded, index: int) -> str | None:
        return fault(source, index, self.most_pixels)


def examine(source: Encoded, index: int, check: Check) -> Facts:
    """Read and check one sample. Never raises for what is wrong with it, but UserError as `faults.read` does."""
    most = most_bytes(check.most_pixels) if isinstance(check, Decodes) else MOST_BYTES
    try:
        content = read(source, index, most)
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
    # A row of a parquet file has no extension.
    odd = ("misnamed",) if extension in EXTENSIONS and _FORMATS.get(extension, extension) != found else ()
    try:
        size, more = _header(content)
    except Exception:  # noqa: BLE001 - it has been decoded; Pillow raises nearly anything at unknown data
        size, more = None, ()
    return Facts(None, int(digest(content.tobytes()), 16), found, size, odd + more)


def _header(content: Bytes) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Return width and height, and what is odd, without decoding."""
    with Image.open(io.BytesIO(content.data)) as image:
        # EXIF data may follow the pixels of a PNG: Pillow would decode it to look there.
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
