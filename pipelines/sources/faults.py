"""Reasons why a sample of a source is unusable, in the same words whoever loads it."""

from __future__ import annotations

from pipelines.images.encoded import most_bytes
from pipelines.images.reference import content_fault, read_fault
from pipelines.sources.base import Encoded


def fault(source: Encoded, index: int, most_pixels: int) -> str | None:
    """Read a sample and decode all of it. Return why that fails, or None.

    Raises MemoryError, which is not the image's fault.
    """
    try:
        content = source.encoded(index, most_bytes(most_pixels))
    except OSError as error:
        return read_fault(error)
    return content_fault(content, most_pixels)
