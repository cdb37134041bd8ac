"""Hints for misspelt keys and names: the nearest that the schema knows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag

from pipelines.common.text import LONGEST_WORD, close, nearest, quoted

KEYS = {
    "arch": ["model.name"],
    "batch_size": ["train.global_batch_size"],
    "bs": ["train.global_batch_size"],
    "clip_grad": ["train.clip.norm"],
    "dataset": ["data.name"],
    "grad_clip": ["train.clip.norm"],
    "gradient_clip_val": ["train.clip.norm"],
    "learning_rate": ["train.lr.table", "train.lr.peak"],
    "lr": ["train.lr.table", "train.lr.peak"],
    "max_grad_norm": ["train.clip.norm"],
    "num_workers": ["data.threads"],
    "opt": ["train.optimizer.name"],
    "output_dir": ["runs"],
    "save_dir": ["runs"],
    "scheduler": ["train.lr.name"],
    "wd": ["train.optimizer.weight_decay"],
    "workers": ["data.threads"],
}
"""Keys by the names that other trainers give them."""

SHORT = {
    "dynamic": "dsr",
    "folder": "imagenet",
    "image_folder": "imagenet",
    "imagefolder": "imagenet",
    "snfs": "sparsemomentum",
    "wrn": "wideresnet",
}
"""Beginnings of names."""

Names = Mapping[str, Callable[[], Iterable[str]]]
"""More names of a section, by the section, beside those that the schema lists."""


def for_key(location: Sequence[str], model: type[BaseModel] | None, root: type[BaseModel]) -> str:
    """Return the end of a message about an unknown key: the nearest keys, else those of its section."""
    *above, key = location
    here = model.model_fields if model is not None else {}
    keys = _keys(root)
    if ".".join(location) in keys:
        return f"; it goes with {'.'.join(above)}.name {_any(keys['.'.join(location)])} alone"
    elsewhere = [path for path in keys if not (path.split(".")[:-1] == above and path.split(".")[-1] in here)]
    by_last: dict[str, list[str]] = {}
    for path in sorted(elsewhere, key=lambda path: path.split(".")[: len(above)] != above):  # The own section's first.
        by_last.setdefault(path.rpartition(".")[2], []).append(path)
    by_last.pop("name", None)
    if found := KEYS.get(key.lower()) or by_last.get(key):
        return _did_you_mean(found, keys, root)
    if not close(key, sorted(here)) and (near := close(key, sorted(by_last))):
        return _did_you_mean([path for one in near for path in by_last[one]], keys, root)
    return nearest(key, here)


def for_section(location: Sequence[str], value: object, root: type[BaseModel], names: Names) -> str:
    """Return the end of a message about a word in the place of a section: the section that was meant, if it is clear.

    It is a whole section, since a new name beside the keys of another would be refused.
    """
    classes = _classes(location, root)
    section = ".".join(location)
    if isinstance(value, str) and len(classes) > 1:
        found = names_like(value, with_more(location[-1], classes, names), 1)
        return f"; did you mean {section}='{{name: {found[0]}}}'?" if found else ""
    tables = [name for name, one in classes.items() if "table" in one.model_fields]
    is_rate = isinstance(value, (int, float)) and tables
    return f"; did you mean {section}='{{name: {tables[0]}, table: {value}}}'?" if is_rate else ""


def with_more(section: str, known: Iterable[str], names: Names) -> list[str]:
    """Return the names that a section can have."""
    return [*known, *(names[section]() if section in names else ())]


def _classes(section: Sequence[str], root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the classes of a section by name; {} for a key that is no section."""
    field = root.model_fields.get(section[0]) if section else None
    classes = models_of(field.annotation) if field is not None else {}
    if len(section) < 2:
        return classes
    return _classes(section[1:], next(iter(classes.values()))) if len(classes) == 1 else {}


def _did_you_mean(paths: Sequence[str], keys: Mapping[str, Sequence[str]], root: type[BaseModel]) -> str:
    return f"; did you mean {' or '.join(_with_names(path, keys[path], root) for path in paths[:3])}?"


def _with_names(path: str, names: Sequence[str], root: type[BaseModel]) -> str:
    """Return a path with the names of its section that have it: `'train.lr.peak' (where train.lr.name is cosine)`."""
    section = path.rpartition(".")[0]
    classes = _classes(section.split("."), root)
    if len(names) == len(classes) or not names or default_name(section.split("."), root) in names:
        return f"'{path}'"
    return f"'{path}' (where {section}.name is {_any(names)})"


def default_name(section: Sequence[str], root: type[BaseModel]) -> str | None:
    """Return the name of a section that is not given; None if it must be given."""
    field = root.model_fields.get(section[0])
    if field is None or len(section) == 1:
        return getattr(field.default, "name", None) if field is not None else None
    (inner, *others) = models_of(field.annotation).values() or (None,)
    return default_name(section[1:], inner) if inner is not None and not others else None


def _any(names: Sequence[str]) -> str:
    return " or ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} or {names[-1]}"


def _keys(root: type[BaseModel], above: str = "") -> dict[str, list[str]]:
    """Return each key of a schema as section.key, with the names of the classes that have it if there are several."""
    found: dict[str, list[str]] = {}
    for key, field in root.model_fields.items():
        found[f"{above}{key}"] = []
        classes = models_of(field.annotation)
        for name, inner in classes.items():
            for path, names in _keys(inner, f"{above}{key}.").items():
                found.setdefault(path, []).extend([name] if len(classes) > 1 else names)
    return found


def names_like(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return names that a wrong one may stand for: those that contain it or a part of it, else similar spellings.

    Only the part after a `/` counts, without signs and capitals. An exact match leaves out other torchvision models.
    """
    word = word[:LONGEST_WORD].lower()
    for short, long in SHORT.items():
        word = re.sub(f"^{short}(?![a-z])", long, word)
    plain = {name: _squeezed(name.lower().rpartition("/")[2]) for name in known}
    sought = _squeezed(word)
    same = [name for name, one in plain.items() if one == sought]
    if same:
        return [*same, *(name for name, one in plain.items() if sought in one and "/" not in name and name not in same)]
    for part in (sought, sought.rstrip("0123456789")):
        if len(part) > 2 and (found := [name for name, one in plain.items() if part in one or (one and one in part)]):
            return sorted(found, key=lambda name: "/" in name)[:most]
    misspelt = difflib.get_close_matches(sought, list(plain.values()), n=most)
    return [name for one in dict.fromkeys(misspelt) for name in plain if plain[name] == one][:most]


def _squeezed(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text)


def for_name(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name; "" if no name is similar."""
    names = names_like(word, known)
    return f"; did you mean {' or '.join(quoted(names))}?" if names else ""


def models_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """Return the classes of a union type, by their tags."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = annotation.model_fields.get("name")
        literal = get_args(name.annotation) if name is not None and get_origin(name.annotation) is Literal else ()
        return {str(next(iter(literal), annotation.__name__)): annotation}
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        members = models_of(inner)
        return dict(zip(tags, members.values(), strict=True)) if tags else members
    if get_origin(annotation) in (Union, UnionType):
        return {tag: model for member in get_args(annotation) for tag, model in models_of(member).items()}
    return {}
