"""Odd names of files and folders."""

from __future__ import annotations

from random import Random

STEMS: tuple[bytes, ...] = (
    b"line\nbreak",
    b"return\rhere",
    b"\x1b[31mred\x1b[2J",
    b"bell\x07",
    b"tab\t",
    b"no text \xff\xfe",
    "half a surrogate \ud800".encode(errors="surrogatepass"),
    "right to left \u202e gnp".encode(),
    "line separator \u2028".encode(),
    "composed \u00e9".encode(),
    "decomposed e\u0301".encode(),
    "\u65e5\u672c\u8a9e".encode(),
    b"-rf",
    b"--help",
    b"#comment",
    b"%s %d {} $HOME",
    b"~",
    b"back\\slash",
    b"a b  c ",
    b" leading",
    b"'quotes\"",
    b"*?[x]",
    b"x" * 240,
    b"a.b.c",
    b"...",
    b"CON",
    b"error: x",
    b"data.path=/",
)


def odd(rng: Random, suffix: str = "") -> bytes:
    return rng.choice(STEMS) + suffix.encode()
