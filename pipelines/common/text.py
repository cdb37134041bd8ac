"""Text for people: one line, short enough, with the nearest of the names that there are."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

MOST_NAMES = 20
_MOST_MEANT = 5
"""Names that a part of one may mean. timm has hundreds with `vit` in them."""
LONGEST_WORD = 200
"""Characters of a user's word that are compared with known names."""


def one_line(text: object) -> str:
    """Escape characters that are not printable: names may hold line ends, tabs, and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def unfit(text: str) -> str | None:
    """Return why a text cannot be a name or a path, for a message; None if it can."""
    for character in () if text.isprintable() else text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            return f"holds the character {code_of(character)}, and names have no control characters and no half ones"
    return None


def code_of(character: str) -> str:
    """Return the number of a character, such as U+000A: readable for any character."""
    return f"U+{ord(character):04X}"


def cut(text: object, most: int = 60) -> str:
    """Return the text, or its beginning and `...` if it has more than `most` characters."""
    shown = str(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def some_of(names: Iterable[str], most: int = 10) -> str:
    """Join up to `most` names: `a, b, c and 9 more`."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(cut, names[:most])) + more


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'period'?"` for a near miss, else `"; there are a, b, c"`."""
    known = sorted(known)
    matches = close(word, known)
    if matches:
        more = f" or one of {len(matches) - _MOST_MEANT:,} more" if len(matches) > _MOST_MEANT else ""
        return f"; did you mean {' or '.join(quoted(matches[:_MOST_MEANT]))}{more}?"
    return f"; there are {some_of(known, MOST_NAMES)}" if known else ""


def close(word: str, known: Sequence[str], most: int = 1) -> list[str]:
    """Return known names that the word may mean: misspelt, or a part of them between underscores."""
    word = word[:LONGEST_WORD]
    return difflib.get_close_matches(word, known, n=most) or [name for name in known if word in name.split("_")]


def alike(pattern: str, names: Iterable[str], most: int = 4) -> str:
    """Return `"; the nearest of 54 are a, b, c, d"`: names of layers for a shell pattern that matches none.

    A name that is much nearer than the others is suggested alone. If no name is near, there is one for each beginning
    up to a point, such as layer1.0.conv1.weight for layer1.
    """
    names = list(names)
    plain = pattern[:LONGEST_WORD].translate({ord("*"): None, ord("?"): None})
    ratios = {name: difflib.SequenceMatcher(None, name, plain, autojunk=False).ratio() for name in names}
    best = max(ratios.values(), default=0)
    first = [name for name in names if ratios[name] == best]
    if best > 0.8 and len(first) == 1:
        return f"; did you mean '{first[0]}'?"
    if len(names) <= most:
        return f"; there {'is' if len(names) == 1 else 'are'} {some_of(names) or 'none'}"
    if best < 0.5:
        kinds = list({name.partition(".")[0]: name for name in reversed(names)}.values())[::-1]
        return (
            f"; there are {len(names)}, such as {', '.join(dict.fromkeys([*kinds[: most - 1], kinds[-1], names[-1]]))}"
        )
    near = sorted(names, key=lambda name: -ratios[name])[:most]
    return f"; the nearest of {len(names)} are {some_of(name for name in names if name in near)}"


def quoted(words: Iterable[str]) -> list[str]:
    """Put each word into single quotes."""
    return [f"'{word}'" for word in words]
