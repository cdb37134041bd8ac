"""Images as DALI gets them: in a form that DALI decodes exactly as the reference does."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.images.encoded import Bytes
from pipelines.images.headers import Header, Size, checked
from pipelines.images.jpeg import Jpeg
from pipelines.images.png import is_plain
from pipelines.images.reference import as_pnm, decoded, orientation

LARGE_PIXELS = 1 << 24
"""Larger images do not wait in a batch (dali_large.py). Most cameras' photographs are smaller."""
LARGE_TIMES_AS_LONG = 16
"""Images with a larger ratio of sides do not wait either: resized to a shorter side they get large."""


def is_large(size: Size) -> bool:
    """Return True for an image that must not wait in a batch. `size`: (width, height) in pixels."""
    return size[0] * size[1] > LARGE_PIXELS or max(size) > LARGE_TIMES_AS_LONG * min(size)


def given(content: Bytes, most_pixels: int, *, as_it_is: bool = True, header: Header | None = None) -> Bytes:
    """Return a plain JPEG or PNG without metadata, if `as_it_is`; otherwise decode the image.

    Raises as `reference.decoded`.
    """
    header = header or checked(content, most_pixels)
    if as_it_is and header.jpeg is not None and header.jpeg.plain:
        return _without_metadata(content, header.jpeg)
    if as_it_is and header.format == "PNG" and is_plain(content):
        return content
    return as_pnm(decoded(content, most_pixels, header))


def size_of(content: Bytes, header: Header) -> Size:
    """Return width and height as stored. Raises as `reference.decoded`."""
    if header.size is not None:
        return header.size
    with Image.open(io.BytesIO(content.data), formats=(header.format,)) as image:
        width, height = image.size
    return width, height


def _without_metadata(content: Bytes, jpeg: Jpeg) -> Bytes:
    """Return a JPEG up to its end mark. Of the metadata it keeps the EXIF orientation, as Pillow reads it."""
    if not jpeg.metadata:
        kept = content[: jpeg.end]
        return kept if len(content) < 2 * len(kept) else kept.copy()  # A view would keep all of it in memory.
    turn = orientation(Image.open(io.BytesIO(content.data), formats=("JPEG",)))  # Pillow may refuse metadata.
    parts, position = [], 0
    for start, end in jpeg.app1:
        parts.append(content[position:start])
        position = end
    parts.append(content[position : jpeg.end])
    return np.concatenate([content[:2], _exif(turn), parts[0][2:], *parts[1:]] if turn != 1 else parts)


def _exif(turn: int) -> Bytes:
    """Return a segment with the orientation alone: a TIFF directory of one tag, a short."""
    directory = b"\x00\x01" + b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, turn, 0, 0]) + bytes(4)
    body = b"Exif\0\0" + b"MM\0*\0\0\0\x08" + directory
    return np.frombuffer(b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body, dtype=np.uint8)
