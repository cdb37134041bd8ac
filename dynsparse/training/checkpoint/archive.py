"""torch.save's archives, some of their entries deflated; read with care, for anybody may have written them.

`torch.load(weights_only=True)` executes nothing, but it builds what it is told
to: tensors on no device, or of any size, and objects that take gigabytes. So
before it sees a file, the file has to be what `save_deflated` writes: an
archive of bounded size, and in it a pickle of plain data and dense tensors.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

MOST_TIMES = 8
"""How much larger than its file the content may be."""
SPARE_BYTES = 16 << 20
"""And so much more, for small files."""
_PROTOCOL = 2  # Of pickles, that torch.save takes.
_STRANGE = {"BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_MOST_AT_ONCE = 64 << 20
_DEEPEST = 32
_SAMPLE = 1 << 14
"""Bytes of an entry that tell whether it is worth to be deflated."""
_BYTES = {
    f"{kind}Storage": size
    for size, kinds in {
        1: ("Bool", "Byte", "Char"),
        2: ("BFloat16", "Half", "Short"),
        4: ("Float", "Int"),
        8: ("Double", "Long"),
    }.items()
    for kind in kinds
}
"""Of a value of each of torch's storages that we write."""


class DamagedError(ValueError):
    """No checkpoint, or one that is not as it was written. Says what is wrong: "is empty"."""


def load(file: BinaryIO) -> Any:
    """Plain data and dense CPU tensors from what `save_deflated` wrote.

    DamagedError for anything else. Takes no more memory than twice what the
    archive holds, which is at most `MOST_TIMES` its size and `SPARE_BYTES`.
    """
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise DamagedError("is empty")
    plain = io.BytesIO()
    try:
        with zipfile.ZipFile(_InPieces(file)) as archive, zipfile.ZipFile(plain, "w") as copy:
            _check_entries(archive.infolist(), size)
            for entry in archive.infolist():
                with archive.open(entry) as source, copy.open(entry.filename, "w", force_zip64=True) as target:
                    while piece := _next(source, entry):
                        target.write(piece)
            pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise DamagedError("is an archive of another kind")
            folder = pickles[0].removesuffix("data.pkl") + "data/"
            if archive.namelist().count(folder.replace("/data/", "/constants.pkl")):
                raise DamagedError("is an archive of another kind")  # TorchScript's.
            sizes = {entry.filename.removeprefix(folder): entry.file_size for entry in archive.infolist()}
            _check_pickle(copy.read(pickles[0]), sizes)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        whole = not isinstance(error, zipfile.BadZipFile) or "is not a zip file" not in str(error)
        raise DamagedError(f"is damaged ({error})" if whole else "is no archive: cut short, or no checkpoint") from None
    plain.seek(0)
    try:
        content = torch.load(plain, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damage shows as any error at all
        # torch's own words tell of archives and pickles, and advise to load what is not to be trusted.
        raise DamagedError(f"holds no plain data ({type(error).__name__})") from None
    _check_plain(content, plain.getbuffer().nbytes)
    return content


def _next(source: IO[bytes], entry: zipfile.ZipInfo) -> bytes:
    try:
        return source.read(1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        what = "" if "CRC" in str(error) else f" ({error})"
        raise DamagedError(f"is damaged in its entry {entry.filename}{what}") from None


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


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len({entry.filename for entry in entries}) < len(entries):
        raise DamagedError("is damaged (two entries have one name)")
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise DamagedError(f"is of another kind (entry {entry.filename} is packed in a way that is not ours)")
    held = sum(entry.file_size for entry in entries)
    if held > most_bytes(size):
        raise DamagedError(f"claims to hold {held:,} bytes in {size:,}")


def most_bytes(size: int) -> int:
    """That an archive of `size` bytes may hold."""
    return MOST_TIMES * size + SPARE_BYTES


def _check_pickle(content: bytes, entries: Mapping[str, int]) -> None:
    """Nothing is built but tensors and mappings. Told by a first reading that builds nothing else either.

    `entries`: the bytes of each entry, by its name.
    """
    try:
        for code, argument, _ in pickletools.genops(content):
            if code.name in _STRANGE or (code.name == "PROTO" and argument != _PROTOCOL):
                raise DamagedError(f"holds other than plain data and dense tensors ({code.name})")
        _Dry(content, entries).load()
    except DamagedError:
        raise
    except Exception:  # noqa: BLE001 - whatever it stumbles over
        raise DamagedError("is damaged (its pickle is not sound)") from None


class _Dry(pickle.Unpickler):
    """Reads the pickle and makes None of each tensor, once it has found that its storage is there."""

    def __init__(self, content: bytes, entries: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self._entries = entries

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _no_tensor
        if module == "torch" and name in _BYTES:
            return name
        raise DamagedError(f"holds other than plain data and dense tensors ({module}.{name!a})")

    def persistent_load(self, pid: Any) -> None:
        word, kind, key, _, values = pid
        if word != "storage" or self._entries[key] != _BYTES[kind] * values:
            raise DamagedError(f"is damaged (its tensor {key!a} has another size than it is said to have)")


def _no_tensor(*_: Any) -> None:
    return None


def _check_plain(content: Any, held: int) -> None:
    """No part is met more often than it is stored, or nests without end; tensors take no more than what is stored."""
    left, tensor_bytes = held, held
    stack = [(content, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        if depth > _DEEPEST or left < 0:
            raise DamagedError("nests too deeply" if depth > _DEEPEST else "holds a part again and again")
        if isinstance(value, Tensor):
            tensor_bytes -= value.numel() * value.element_size()
            _check_tensor(value)
            if tensor_bytes < 0:
                raise DamagedError("holds tensors that share memory")
        elif isinstance(value, Mapping):
            stack += [(key, depth + 1) for key in value] + [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple)):
            stack += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and abs(value) >= 1 << 64:
            raise DamagedError("holds a number of more than 64 bits")
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            raise DamagedError(f"holds other than plain data and dense tensors ({type(value).__name__})")


def _check_tensor(value: Tensor) -> None:
    dense = value.is_contiguous() or (value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last))
    if type(value) is not Tensor or value.requires_grad or value.layout != torch.strided or not dense:
        raise DamagedError("holds a tensor that is not dense")


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
        room = SPARE_BYTES
        for entry in plain.infolist():
            data = plain.read(entry)
            worth = entry.filename in small or _shrinks(data[:_SAMPLE])
            # `load` takes no more from a file of this size: zeros alone would shrink beyond that.
            worth = worth and room > len(data)
            info = zipfile.ZipInfo(entry.filename)
            info.file_size = len(data)
            info.compress_type = zipfile.ZIP_DEFLATED if worth else zipfile.ZIP_STORED
            with archive.open(info, "w") as target:
                if worth:
                    # Neither masks nor weights have repeated strings to look for: runs of one byte are found at three
                    # times the speed, and what is found instead costs masks a fifth. zipfile offers no choice of
                    # strategy; were its attribute renamed one day, files would be as good and a little larger.
                    target._compressor = _compressor()  # type: ignore[attr-defined]
                target.write(data)
            room += MOST_TIMES * archive.getinfo(entry.filename).compress_size - len(data)


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
