"""Words for people."""

from __future__ import annotations

import unicodedata


def one_line(text: object) -> str:
    """With escapes for what is not printable: names may hold line ends, tabs, and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def unfit(text: str) -> str | None:
    """What keeps a text from being a name or a path, for a message; None if nothing does."""
    for character in () if text.isprintable() else text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            return f"holds the character {code_of(character)}, and names have no control characters and no half ones"
    return None


def code_of(character: str) -> str:
    """Its number, such as U+000A: that can be read, whatever it is."""
    return f"U+{ord(character):04X}"
