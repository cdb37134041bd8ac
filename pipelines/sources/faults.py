"""Reasons why a sample of a source is unusable, in the same words whoever loads it."""

from __future__ import annotations

import errno
import time

from pipelines.common.errors import UserError
from pipelines.images.encoded import Bytes, most_bytes
from pipelines.images.reference import content_fault, read_fault
from pipelines.sources.base import Encoded

NO_FAULT_OF_A_FILE = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),  # Of the system.
        *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN),  # Of storage that is away.
        *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    }
)
MAY_PASS = NO_FAULT_OF_A_FILE | {errno.EIO}
"""Errors after which a file is read again. EIO may be of a disk or of the file's own place on it."""
PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each further try."""


def fault(source: Encoded, index: int, most_pixels: int) -> str | None:
    """Read a sample and decode all of it. Return why that fails, or None.

    Raises what is not the image's fault: MemoryError, and UserError as `read` does.
    """
    try:
        content = read(source, index, most_bytes(most_pixels))
    except OSError as error:
        return read_fault(error)
    return content_fault(content, most_pixels)


def read(source: Encoded, index: int, most: int) -> Bytes:
    """Read a sample of at most so many bytes, again where the error may pass. Raises OSError for what is of the file.

    UserError for what is of the system or of its storage: the file may be good, so that it must not be left out.
    """
    for pause in (*PAUSES, None):
        try:
            return source.encoded(index, most)
        except OSError as error:
            if pause is None or error.errno not in MAY_PASS:
                if error.errno in NO_FAULT_OF_A_FILE:
                    raise UserError(
                        f"{source.name(index)} cannot be read now ({error.strerror}), which is no fault of the file: "
                        "mend that, and resume"
                    ) from None
                raise
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")
