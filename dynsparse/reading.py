"""Reading YAML: plain data, in which a field of text holds the text that was written.

YAML 1.1 makes a number of 007, a date of 2026-11-05 and a boolean of `on`. Whether such a word is text is for
the schema to say, which a reader of YAML does not know. So `read` keeps both, and `plain` chooses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from dynsparse.errors import UserError


@dataclass(frozen=True)
class Written:
    """A word that YAML reads as something else than text."""

    value: Any
    """A number, a boolean, None, or the text itself where it is none of these, such as a date."""
    text: str


def read(text: str, source: str) -> Any:
    """The mappings, lists, texts and `Written` of a YAML document. UserError, naming `source`, if it is none."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number that Python cannot read
        raise UserError(f"{source}: no valid YAML ({' '.join(str(error).split())})") from None


def plain(tree: Any, types: Sequence[Any] = ()) -> Any:
    """The plain data of a tree that `read` gave.

    `types` are what the schema allows in its place. A word is text where all of them are. It is None where it reads
    so and one of them may be None.
    """
    if isinstance(tree, Written):
        return _value(tree, types)
    if isinstance(tree, dict):
        words = any(_has_words_as_keys(type_) for type_ in alternatives(types))
        return {
            text_of(key) if words else plain(key): plain(value, under(types, text_of(key)))
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        items = [item for type_ in alternatives(types) if get_origin(type_) is list for item in get_args(type_)]
        return [plain(item, items) for item in tree]
    return tree


def under(types: Sequence[Any], key: Any) -> list[Any]:
    """What the schema allows for a key of what it allows here."""
    found: list[Any] = []
    for type_ in alternatives(types):
        if get_origin(type_) is dict:
            found.append(get_args(type_)[1])
        elif _is_section(type_) and key in type_.model_fields:
            found.append(type_.model_fields[key].annotation)
    return found


def text_of(key: Any) -> Any:
    """Return a key as it was written."""
    return key.text if isinstance(key, Written) else key


def _value(word: Written, types: Sequence[Any]) -> Any:
    allowed = list(alternatives(types))
    if word.value is None and (not word.text or type(None) in allowed):
        return None
    texts = [_is_text(type_) for type_ in allowed if type_ is not type(None)]
    return word.text if texts and all(texts) else word.value


def alternatives(types: Iterable[Any]) -> Iterator[Any]:
    """The types themselves: those that a union is made of, without what annotates them."""
    for type_ in types:
        if get_origin(type_) is Annotated:
            yield from alternatives(get_args(type_)[:1])
        elif get_origin(type_) in (Union, UnionType):
            yield from alternatives(get_args(type_))
        else:
            yield type_


def _is_text(type_: Any) -> bool:
    return type_ is str or (get_origin(type_) is Literal and all(isinstance(one, str) for one in get_args(type_)))


def _is_section(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, BaseModel)


def _has_words_as_keys(type_: Any) -> bool:
    return _is_section(type_) or (get_origin(type_) is dict and _is_text(get_args(type_)[0]))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two repairs: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            word = key.value if isinstance(key, Written) else key
            if not isinstance(word, (str, int, float, bool)):
                raise yaml.constructor.ConstructorError(None, None, f"key {word!r} is no word", key_node.start_mark)
            names = {text_of(key), (isinstance(word, bool), word)}  # As text, and as a value: 1 is 1.0, but not true.
            if names & seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{word}' is given twice", key_node.start_mark)
            seen |= names
        return super().construct_mapping(node, deep)


_NUMBER = r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_NUMBER), list("-+0123456789."))


def _keeping_text(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Written]:
    """A constructor of the value and the text. Text is all that there is of a number or a date that is none."""

    def written(loader: _Loader, node: yaml.ScalarNode) -> Written:
        text = str(loader.construct_scalar(node))
        try:
            return Written(construct(loader, node), text)
        except ValueError:
            return Written(text, text)

    return written


for _kind, _construct in {
    "bool": _Loader.construct_yaml_bool,
    "float": _Loader.construct_yaml_float,
    "int": _Loader.construct_yaml_int,
    "null": _Loader.construct_yaml_null,
    "timestamp": _Loader.construct_scalar,  # No field takes a date.
    "value": _Loader.construct_scalar,  # The word `=`.
}.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _keeping_text(_construct))
