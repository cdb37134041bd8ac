"""Read torch.save's archives with care, for anybody may have written them.

`torch.load(weights_only=True)` executes nothing, but it builds what it is told to: tensors on no device, or of any
size, and objects that take gigabytes. So before it sees a file, the file has to be what `save_deflated` writes: an
archive of bounded size, and in it a pickle of plain data and dense tensors.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

from dynsparse.training.checkpoint.limits import DamagedError, most_bytes
from dynsparse.training.checkpoint.plain_data import check_pickle, check_plain

_MOST_AT_ONCE = 64 << 20
_PIECE = 1 << 20
_ANOTHER_KIND = "is an archive of another kind"


def load(file: BinaryIO) -> Any:
    """Return plain data and dense CPU tensors from what `save_deflated` wrote. DamagedError for anything else.

    Takes no more memory than twice what the archive holds, which is at most `limits.most_bytes` of its size.
    """
    if os.fstat(file.fileno()).st_size == 0:
        raise DamagedError("is empty")
    try:
        plain = _unpacked(file)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        if isinstance(error, zipfile.BadZipFile) and "is not a zip file" in str(error):
            raise DamagedError("is no archive: cut short, or no checkpoint") from None
        raise DamagedError(f"is damaged ({error})") from None
    try:
        content = torch.load(plain, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damage shows as any error at all
        # torch's own words tell of archives and pickles, and advise to load what is not to be trusted.
        raise DamagedError(f"holds no plain data ({type(error).__name__})") from None
    check_plain(content, plain.getbuffer().nbytes)
    return content


def _unpacked(file: BinaryIO) -> io.BytesIO:
    """Return the archive with all its entries stored, each found to be as it was written."""
    plain = io.BytesIO()
    with zipfile.ZipFile(_InPieces(file)) as archive, zipfile.ZipFile(plain, "w") as copy:
        _check_entries(archive.infolist(), os.fstat(file.fileno()).st_size)
        for entry in archive.infolist():
            with copy.open(entry.filename, "w", force_zip64=True) as target:
                for piece in _pieces(archive, entry):
                    target.write(piece)
        _check_pickle_in(copy)
    plain.seek(0)
    return plain


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Raise DamagedError unless the directory of an archive of `size` bytes is one that we write."""
    if len({entry.filename for entry in entries}) < len(entries):
        raise DamagedError("is damaged (two entries have one name)")
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise DamagedError(f"is of another kind (entry {entry.filename} is packed in a way that is not ours)")
    held = sum(entry.file_size for entry in entries)
    if held > most_bytes(size):
        raise DamagedError(f"claims to hold {held:,} bytes in {size:,}")


def _pieces(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(entry) as source:
        try:
            while piece := source.read(_PIECE):
                yield piece
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            what = "" if "CRC" in str(error) else f" ({error})"
            raise DamagedError(f"is damaged in its entry {entry.filename}{what}") from None


def _check_pickle_in(archive: zipfile.ZipFile) -> None:
    """Raise DamagedError unless the archive has one pickle, of plain data, as in archive/data.pkl."""
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DamagedError(_ANOTHER_KIND)
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:  # TorchScript's.
        raise DamagedError(_ANOTHER_KIND)
    sizes = {entry.filename.removeprefix(f"{folder}data/"): entry.file_size for entry in archive.infolist()}
    check_pickle(archive.read(pickles[0]), sizes)


class _InPieces(io.RawIOBase):
    """A file that refuses to be read in pieces larger than any sound archive has, as one that claims such asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = os.fstat(self._file.fileno()).st_size - self._file.tell()
        if size > _MOST_AT_ONCE:
            raise zipfile.BadZipFile("its directory is too large")
        return self._file.read(size)
