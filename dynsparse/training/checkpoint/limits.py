"""Limits of what the archive of a checkpoint may hold, and the error for what is no checkpoint."""

from __future__ import annotations

MOST_TIMES = 8
"""Bytes that the content may have for each byte of its file."""
SPARE_BYTES = 16 << 20
"""Allowance beyond, for small files."""


class DamagedError(ValueError):
    """No checkpoint, or one that is not as it was written. Says what is wrong: "is empty"."""


def most_bytes(size: int) -> int:
    """Return how many bytes an archive of `size` bytes may hold."""
    return MOST_TIMES * size + SPARE_BYTES
