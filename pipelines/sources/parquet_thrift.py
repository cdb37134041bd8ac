"""Structs in Thrift's compact encoding, as in the footer of a parquet file and in the headers of its pages.

They are read here before pyarrow sees them: some of its accessors end the process at a value that they do not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.sources.tar_headers import UnusableError

Struct = dict[int, Any]
"""Values by the numbers of their fields: int, bool, bytes, a list of these, or a struct. Doubles are None."""
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
_DEEPEST = 16
"""Most structs and lists within each other: a footer has seven."""


def read_struct(content: memoryview, at: int = 0) -> tuple[Struct, int]:
    """Return the struct that begins at byte `at`, and the first byte behind it. Raises UnusableError."""
    reader = _Reader(content, at)
    return reader.struct(0), reader.at


class _Reader:
    def __init__(self, content: memoryview, at: int) -> None:
        self._content = content
        self.at = at
        self._readers: dict[int, Callable[[int], Any]] = {
            **dict.fromkeys((_TRUE, _FALSE, _BYTE), lambda _: self._byte()),
            **dict.fromkeys(_INTEGERS, lambda _: self._integer()),
            _DOUBLE: lambda _: self._bytes(8) and None,
            _BINARY: lambda _: self._bytes(self._varint()),
            _LIST: self._list,
            _SET: self._list,
            _STRUCT: self.struct,
        }

    def struct(self, depth: int) -> Struct:
        found: Struct = {}
        field = 0
        while (head := self._byte()) & 15 != _STOP:
            field = field + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            # In a struct, the type of a truth is its value.
            found[field] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind not in self._readers or depth >= _DEEPEST:
            raise UnusableError("is damaged: its footer, or the header of a page, cannot be read; copy it anew")
        return self._readers[kind](depth + 1)

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        size = head >> 4 if head >> 4 < 15 else self._varint()
        if size > len(self._content) - self.at:
            raise self._truncated()
        return [self._value(head & 15, depth) for _ in range(size)]

    def _bytes(self, size: int) -> bytes:
        if size > len(self._content) - self.at:
            raise self._truncated()
        self.at += size
        return self._content[self.at - size : self.at].tobytes()

    def _byte(self) -> int:
        if self.at >= len(self._content):
            raise self._truncated()
        self.at += 1
        return self._content[self.at - 1]

    def _varint(self) -> int:
        """Return a number that is stored in seven bits a byte, the lowest first."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise UnusableError("is damaged: its footer, or the header of a page, has a number without end; copy it anew")

    def _integer(self) -> int:
        """Return a signed number: 0, -1, 1, -2, ... are stored as 0, 1, 2, 3, ..."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    @staticmethod
    def _truncated() -> UnusableError:
        return UnusableError("is damaged: its footer, or the header of a page, ends too early; copy it anew")
