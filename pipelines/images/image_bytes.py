"""Files of images, read with care: regular files of bounded size, and only the beginning of what is no image."""

from __future__ import annotations

import errno
import os

import numpy as np

from pipelines.common.files import Path, open_descriptor
from pipelines.images.encoded import Bytes
from pipelines.images.headers import UNKNOWN, format_of

FIRST = 1 << 16
"""Bytes that are read before the rest. Most small files are read at once."""


class NoImageError(OSError):
    """A large file that does not begin as an image does. Only its beginning was read."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(errno.EINVAL, UNKNOWN, *([] if path is None else [os.fsdecode(path)]))


def read_image(path: Path, most: int) -> Bytes:
    """Read a whole file. Raises OSError unless it is a regular file of at most `most` bytes, or NoImageError."""
    descriptor = open_descriptor(path, most)
    try:
        return read_range(descriptor, 0, os.fstat(descriptor).st_size, most)
    except NoImageError:
        raise NoImageError(path) from None
    finally:
        os.close(descriptor)


def read_range(descriptor: int, offset: int, size: int, most: int) -> Bytes:
    """Read `size` bytes of a file, or less where it ends. Raises OSError as `read_image`."""
    if size > most:
        raise OSError(errno.EFBIG, f"has {size:,} bytes, more than {most:,}")
    content = np.empty(size, dtype=np.uint8)
    done = 0
    while done < size:
        end = size if done else FIRST
        read = os.preadv(descriptor, [content.data[done:end]], offset + done)
        if read == 0:
            return content[:done]
        if done == 0 and size > FIRST and format_of(content[:read]) is None:
            raise NoImageError
        done += read
    return content
