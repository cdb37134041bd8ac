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
"""Numbers of errors after which a file may be good, so that it must not be left out."""
PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each further try after one of `NO_FAULT_OF_A_FILE`."""
OF_A_DISK = (0.1,)
"""Seconds before the further try after EIO, which is of a disk or of the file's own place on it."""


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
    tries = 0
    while True:
        try:
            return source.encoded(index, most)
        except OSError as error:
            is_of_the_file = error.errno not in NO_FAULT_OF_A_FILE
            pauses = PAUSES if not is_of_the_file else OF_A_DISK if error.errno == errno.EIO else ()
            if tries == len(pauses):
                if is_of_the_file:
                    raise
                raise UserError(
                    f"{source.name(index)} cannot be read now ({error.strerror}), which is no fault of the file: "
                    "mend that, and resume"
                ) from None
            time.sleep(pauses[tries])
            source.reopen()
            tries += 1
