"""Reading YAML into plain data, in which a field of text holds the text that was written.

YAML 1.1 makes a number of 007, a date of 2026-11-05 and a boolean of `on`. The schema says whether such a word is text,
and a reader of YAML does not know the schema. So `read` keeps both, and `plain` chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from dynsparse.config.documents import MOST_BYTES, MOST_LEVELS, DocumentError, Written, load
from dynsparse.errors import UserError
from dynsparse.explain import kind_of
from pipelines.common.files import read_text
from pipelines.common.text import cut, unfit


def read_file(path: str | PathLike[str], option: str, examples: str) -> Any:
    """Read a YAML file, as `read` does. Raises UserError, which names the option, if it cannot be read."""
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"{option} {path}: cannot be read ({reason}); give a YAML file such as those in {examples}"
        ) from None
    return read(text, str(path))


def read(text: str, source: str) -> Any:
    """Return the mappings, lists, texts and `Written` of a YAML document.

    Raises UserError, which names `source`, if it is not valid.
    """
    try:
        return load(text)
    except DocumentError as error:
        raise UserError(f"{source}: no valid YAML ({error})") from None


def problems(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place and the fault of each value that no key could have, wherever it came from."""
    if len(keys) > MOST_LEVELS:
        yield keys, f"has more than {MOST_LEVELS} levels, one in another"
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(key, str) and (problem := unfit(key)) is not None:
                yield keys, f"has the key '{cut(key)}', which {problem}"
            yield from problems(value, (*keys, str(key)))
    elif isinstance(tree, list):
        for item in tree:
            yield from problems(item, keys)
    elif isinstance(tree, str) and (problem := unfit(tree)) is not None:
        yield keys, f"is '{cut(tree)}', which {problem}"
    elif isinstance(tree, int) and tree.bit_length() > 63:
        yield keys, f"{kind_of(tree)}; the largest whole number is 2^63 - 1"


def plain(tree: Any, types: Sequence[Any] = ()) -> Any:
    """Return the plain data of a tree from `read`.

    `types` are what the schema allows in its place. A word is text if all of them are text. It is None if it reads as
    None and one of them may be None.
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
    """Return the types that the schema allows under a key, from those that it allows here."""
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
    """Yield the members of each union, without annotations."""
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
