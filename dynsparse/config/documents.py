"""YAML documents that anybody may have written: what is read is bounded in size, depth and what tags can say.

`load` gives mappings, lists, texts and `Written`. It constructs nothing else, whatever a document asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from dynsparse.errors import LONGEST_NUMBER
from pipelines.common.text import code_of, unfit

MOST_BYTES = 256 << 10
"""Longest document. The longest list of experiments that we know has 30,000 bytes; 256 KiB take a few seconds."""
MOST_EXPANDED = 2 * MOST_BYTES
"""Most characters with every alias written out, and `EACH` more for each value, since short values take time too."""
EACH = 8
MOST_LEVELS = 50


class DocumentError(ValueError):
    """A document that cannot be read: why, and where."""


@dataclass(frozen=True)
class Written:
    """A word that YAML does not read as text."""

    value: Any
    """A number, a boolean or None; the text itself for any other, such as a date."""
    text: str


def load(text: str) -> Any:
    """Return the mappings, lists, texts and `Written` of a YAML document.

    Raises DocumentError for text that is not valid YAML, or too large.
    """
    if len(text) > MOST_BYTES:
        raise DocumentError(f"it has {len(text):,} characters, and {MOST_BYTES:,} are the most")
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
        return None if node is None else _Builder(composer).build(node)
    except ReaderError as error:
        number = text[: error.position].count("\n") + 1
        raise DocumentError(f"line {number}: holds the character {code_of(chr(int(str(error.character))))}") from None
    except yaml.MarkedYAMLError as error:
        raise DocumentError(_words(error)) from None


def _words(error: yaml.MarkedYAMLError) -> str:
    """Return PyYAML's message on one line, without its picture of the place; long quotes are cut."""
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    words = " ".join(" ".join(filter(None, (error.context, error.problem))).split())
    return place + (words if len(words) <= 200 else words[:197] + "...")


class _Composer(yaml.SafeLoader):
    """A composer that measures the tree of nodes while it builds it, before anything follows an alias.

    An alias counts as much as its target. So nine lists, each of nine aliases of the list before, count 9^9 words.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._size = 0
        self._height = 0
        """Levels below the current node, as far as they are known."""
        self._measured: dict[int, tuple[int, int]] = {}
        """Size and height of each node that is complete, by its id."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        before, above = self._size, self._height
        self._level, self._size, self._height = self._level + 1, before + EACH + len(getattr(event, "value", "")), 0
        self._require_bounded(event)
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._measured:
                raise ComposerError(None, None, f"'{event.anchor:.50}' holds itself", event.start_mark)
            size, self._height = self._measured[id(node)]
            self._size += size
            self._require_bounded(event)
        else:
            self._measured[id(node)] = self._size - before, self._height
        self._level, self._height = self._level - 1, max(above, self._height + 1)
        return node

    def _require_bounded(self, event: Any) -> None:
        if self._level + self._height > MOST_LEVELS:
            raise ComposerError(None, None, f"more than {MOST_LEVELS} levels, one in another", event.start_mark)
        if self._size > MOST_EXPANDED:
            problem = f"more than {MOST_EXPANDED:,} characters, with aliases written out and {EACH} more for each value"
            raise ComposerError(None, None, problem, event.start_mark)


_TAG = "tag:yaml.org,2002:"
_NUMBER = r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"
_Composer.add_implicit_resolver(f"{_TAG}float", re.compile(_NUMBER), list("-+0123456789."))  # YAML 1.1: 1e-3 is text.

_SCALARS: dict[str, Callable[[Any, ScalarNode], Any]] = {
    "bool": yaml.SafeLoader.construct_yaml_bool,
    "float": yaml.SafeLoader.construct_yaml_float,
    "int": yaml.SafeLoader.construct_yaml_int,
    "null": yaml.SafeLoader.construct_yaml_null,
    "timestamp": yaml.SafeLoader.construct_scalar,  # No field takes a date.
    "value": yaml.SafeLoader.construct_scalar,  # The word `=`.
    "merge": yaml.SafeLoader.construct_scalar,  # `<<`, where it is no key.
}


class _Builder:
    """Turns nodes into plain data. Any tag is an error that is neither a word's own nor one of plain data."""

    def __init__(self, composer: _Composer) -> None:
        self._composer = composer

    def build(self, node: Node) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, ScalarNode) and (kind in _SCALARS or kind == "str"):
            return self._scalar(node, kind)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.build(item) for item in node.value]
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node)
        raise _error(node, f"the tag {node.tag.replace(_TAG, '!!'):.50} is none for this; leave it out")

    def _scalar(self, node: ScalarNode, kind: str) -> str | Written:
        text = str(node.value)
        if (problem := unfit(text)) is not None:
            raise _error(node, f"a text {problem}")
        if kind == "str":
            return text
        try:
            if len(text) > LONGEST_NUMBER:
                raise ValueError
            return Written(_SCALARS[kind](self._composer, node), text)
        except (ValueError, KeyError, OverflowError):
            looks_like_one = self._composer.resolve(ScalarNode, text, (True, False)) == node.tag  # type: ignore[no-untyped-call]
            if looks_like_one:  # And is none: a number that is too long, 2026-99-99.
                return Written(text, text)
            raise _error(node, f"'{text:.50}' is tagged as {kind}, and is none") from None

    def _mapping(self, node: MappingNode) -> dict[Any, Any]:
        """Return a mapping. Merged keys come first, as the epochs of a table that is continued; explicit keys win."""
        explicit: dict[Any, Any] = {}
        taken: set[Any] = set()
        merged: list[MappingNode] = []
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if taken & _names(key):
                raise _error(key_node, f"key '{_text(key):.50}' is given twice")
            taken |= _names(key)
            if key_node.tag == f"{_TAG}merge":
                merged += _mappings(value_node)
            else:
                explicit[key] = self.build(value_node)
        return self._merged(merged, explicit) | explicit

    def _merged(self, mappings: Sequence[MappingNode], explicit: dict[Any, Any]) -> dict[Any, Any]:
        """Return the keys of the mappings, each with its explicit value, else the value of the first mapping."""
        found: dict[Any, Any] = {}
        keys = {name: key for key in explicit for name in _names(key)}
        for one in mappings:
            for key, value in self._mapping(one).items():
                own = next((keys[name] for name in _names(key) if name in keys), key)
                found.setdefault(own, explicit.get(own, value))
                keys |= dict.fromkeys(_names(key), own)
        return found

    def _key(self, node: Node) -> str | Written:
        key = self.build(node)
        if isinstance(key, str) or (isinstance(key, Written) and key.value is not None):
            return key
        shown = "a list" if isinstance(key, list) else "a mapping" if isinstance(key, dict) else "empty"
        raise _error(node, f"a key is {shown}; it must be a word")


def _mappings(node: Node) -> Iterator[MappingNode]:
    """Yield the mappings that `<<` stands for. The first that has a key gives its value."""
    for one in node.value if isinstance(node, SequenceNode) else [node]:
        if not isinstance(one, MappingNode):
            raise _error(one, "'<<' takes a mapping, or a list of mappings")
        yield one


def _names(key: str | Written) -> set[Any]:
    """Return the forms that no second key may have: its text, and its value, where 1 equals 1.0."""
    return {_text(key), key.value if isinstance(key, Written) else key}


def _text(key: str | Written) -> str:
    return key.text if isinstance(key, Written) else key


def _error(node: Node, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)
