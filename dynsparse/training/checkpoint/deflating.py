"""Write checkpoints as torch.save's archives, some of their entries deflated."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import IO, Any

import torch

from dynsparse.training.checkpoint.limits import MOST_TIMES, SPARE_BYTES
from dynsparse.training.checkpoint.zip_writer import ZipWriter

_SHARE = 1 / 3
"""Fraction of the bytes that is deflated whether or not a sample shrinks, in the smallest entries."""
_SAMPLE = 1 << 14
"""Bytes of an entry that tell whether to deflate it."""


def save_deflated(content: Any, file: IO[bytes]) -> None:
    """Write what `torch.save` would, and deflate masks. Raises OSError where `file` cannot be written.

    Masks of density 0.1 take half of their size. Weights and moments lose 7 %, as the bits of their exponents repeat,
    at a second of one core for 60 MB. A third of them is deflated, in the smallest entries. That pays for what explored
    positions take late in a run. Needs as much memory as the content for a while. Lets other threads run.
    """
    plain = io.BytesIO()
    torch.save(content, plain)
    with zipfile.ZipFile(plain) as source:
        archive, small, allowance = ZipWriter(file), _smallest(source.infolist()), SPARE_BYTES
        for entry in source.infolist():
            data = source.read(entry)
            # `archive.load` takes no more from a file of this size: zeros alone would shrink beyond that.
            pays = allowance > len(data) and (entry.filename in small or _shrinks(data[:_SAMPLE]))
            deflated = _deflate(data) if pays else None
            archive.add(entry.filename, data, deflated)
            allowance += MOST_TIMES * len(data if deflated is None else deflated) - len(data)
        archive.finish()


def _smallest(entries: list[zipfile.ZipInfo]) -> set[str]:
    """Names of the smallest entries, as many as it takes to make up `_SHARE` of all bytes."""
    left, names = _SHARE * sum(entry.file_size for entry in entries), set()
    for entry in sorted(entries, key=lambda entry: entry.file_size):
        if left <= 0:
            break
        names.add(entry.filename)
        left -= entry.file_size
    return names


def _shrinks(sample: bytes) -> bool:
    """Tell whether a sample loses a fifth or more."""
    return len(_deflate(sample)) < 0.8 * len(sample)


def _deflate(data: bytes) -> bytes:
    """Return the data as a deflate stream without a frame, as zip archives have it.

    Neither masks nor weights have repeated strings to look for. Z_RLE finds runs of one byte at three times the speed.
    What else would be found costs masks a fifth of their size.
    """
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return compressor.compress(data) + compressor.flush()
