"""Tars written by hand: headers hold what they are told, with right checksums."""

from __future__ import annotations

from dataclasses import dataclass, replace

BLOCK = 512
END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Member:
    name: bytes = b"00000000.png"
    content: bytes = b""
    kind: bytes = b"0"
    size: bytes | int | None = None
    """None: as it is. Bytes stand in the header as they are."""
    mode: bytes = b"0000644\0"
    link: bytes = b""
    magic: bytes = b"ustar\x0000"
    prefix: bytes = b""
    checksum: bytes | None = None
    uid: bytes = b"0000000\0"
    mtime: bytes = b"00000000000\0"

    def bytes(self) -> bytes:
        fields = (self.uid, self.uid, self._size(), self.mtime)
        head = self.name[:100].ljust(100, b"\0") + self.mode[:8].ljust(8, b"\0")
        head += (
            fields[0][:8].ljust(8, b"\0") + fields[1][:8].ljust(8, b"\0") + fields[2] + fields[3][:12].ljust(12, b"\0")
        )
        tail = self.kind[:1] + self.link[:100].ljust(100, b"\0") + self.magic[:8].ljust(8, b"\0") + bytes(80)
        tail += self.prefix[:155].ljust(155, b"\0")
        total = sum(head) + sum(tail) + 8 * ord(" ")
        check = b"%06o\0 " % total if self.checksum is None else self.checksum[:8].ljust(8, b"\0")
        return (head + check + tail).ljust(BLOCK, b"\0") + self.content + bytes(-len(self.content) % BLOCK)

    def _size(self) -> bytes:
        size = len(self.content) if self.size is None else self.size
        if isinstance(size, bytes):
            return size[:12].ljust(12, b"\0")
        if 0 <= size < 8**11:
            return b"%011o\0" % size
        return (
            b"\x80" + (size % 2**88).to_bytes(11, "big") if size >= 0 else b"\xff" + (size % 2**88).to_bytes(11, "big")
        )


def members(content: bytes) -> list[Member]:
    """Members of a plain tar, such as `python -m pipelines shards write` makes."""
    found, at = [], 0
    while at + BLOCK <= len(content) and content[at : at + BLOCK].strip(b"\0"):
        head = content[at : at + BLOCK]
        size = int(head[124:136].strip(b"\0 ") or b"0", 8)
        at += BLOCK
        found.append(Member(head[:100].rstrip(b"\0"), content[at : at + size], head[156:157]))
        at += size + -size % BLOCK
    return found


def tar(parts: list[Member], end: bytes = END) -> bytes:
    return b"".join(part.bytes() for part in parts) + end


def record(key: bytes, value: bytes, length: int | None = None) -> bytes:
    """Record of a PAX header: its length, which counts itself, the key and the value."""
    body = b" " + key + b"=" + value + b"\n"
    size = len(body) + 1
    while len(b"%d" % size) + len(body) != size:
        size += 1
    return b"%d" % (size if length is None else length) + body


def renamed(member: Member, name: bytes) -> Member:
    return replace(member, name=name)
