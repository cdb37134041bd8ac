"""Runs the Python file of a method of one's own, and finds the settings in it."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import ValidationError, create_model

from dynsparse import files
from dynsparse.config.own_method import OwnMethod
from dynsparse.errors import UserError
from dynsparse.explain import kind_of
from dynsparse.methods import AnyMethod, MethodSettings
from pipelines.common.paths import expanded
from pipelines.common.text import cut, one_line

MOST_BYTES = 1 << 20


def known_names() -> list[str]:
    """Return the names of the built-in methods."""
    union, *_ = get_args(AnyMethod)
    return [name for settings in get_args(union) for name in _names(settings)]


def settings_class(section: Mapping[str, Any]) -> type[OwnMethod]:
    """Run the file of a config's `method`, once in a process, and return the class of its settings.

    Raises UserError for a file that cannot be read or run, and for one without settings, or without any of this name.
    """
    path, source = _read(section["path"])
    checksum = checksum_of(source)
    if section.get("checksum") not in (None, checksum):
        raise UserError(
            f"{path} has the checksum {checksum}, and method.checksum is {cut(section['checksum'])}: the file has "
            f"changed since; bring it back, or set method.checksum=null to use it as it is"
        )
    name = section.get("name")
    return _class_named(name if isinstance(name, str) else None, path, source)


def checksum_of(source: bytes) -> str:
    """Return the first 16 digits of the SHA-256 of a file's content."""
    return hashlib.sha256(source).hexdigest()[:16]


def _read(text: object) -> tuple[str, bytes]:
    """Return the path that a text stands for, and the content of the file."""
    if not isinstance(text, str):
        raise UserError(f"{kind_of(text)}; name a Python file")
    try:
        path = expanded(text)
        return path, files.read_bytes(Path(path), MOST_BYTES)
    except FileNotFoundError:
        raise UserError(
            f"{text} is not there; name a Python file, beside the config's file or from the current folder"
        ) from None
    except OSError as error:
        raise UserError(f"{text} cannot be read ({error.strerror}); name a Python file") from None
    except ValueError as error:
        raise UserError(str(error)) from None


@cache
def _class_named(name: str | None, path: str, source: bytes) -> type[OwnMethod]:
    chosen = _chosen(_candidates(_module(path, source), path), name, path)
    if taken := [one for one in _names(chosen) if one in known_names()]:
        raise UserError(f"{path}: {taken[0]} is the name of a built-in method; give {chosen.__name__} another name")
    if clash := [one for one in OwnMethod.__annotations__ if one in chosen.model_fields]:
        raise UserError(
            f"{path}: {chosen.__name__} has the option {clash[0]}, which every file's method has; call it otherwise"
        )
    return _extended(chosen, source)


def _extended(chosen: Any, source: bytes) -> type[OwnMethod]:
    """Return a class of a file's settings and those of every file."""
    made = create_model(
        chosen.__name__, __base__=(chosen, OwnMethod), __doc__=chosen.__doc__, __module__=chosen.__module__
    )
    made.source = source  # type: ignore[attr-defined]
    return cast("type[OwnMethod]", made)


@cache
def _module(path: str, source: bytes) -> ModuleType:
    """Run a file as a module of a name that nothing else has."""
    module = ModuleType(f"dynsparse_own.{Path(path).stem}_{checksum_of(source)}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # Annotations of settings are looked up there.
    try:
        with told(path):
            exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - the user's own code, named in the config
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _candidates(module: ModuleType, path: str) -> list[type[MethodSettings]]:
    """Return the settings that a file defines, with a name each."""
    classes = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, MethodSettings)]
    mine = list(dict.fromkeys(one for one in classes if one.__module__ == module.__name__))
    named = [one for one in mine if _names(one)]
    if not mine:
        raise UserError(
            f"{path} has no settings of a method; define a class that derives from MethodSettings, or from "
            f"DynamicSettings"
        )
    if not named:
        raise UserError(f"{path}: {mine[0].__name__} has no name; give it one, name: Literal['{Path(path).stem}']")
    return named


def _chosen(classes: Sequence[type[MethodSettings]], name: str | None, path: str) -> type[MethodSettings]:
    """Return the class of this name, or the only one."""
    known = [one for settings in classes for one in _names(settings)]
    if name is None and len(classes) > 1:
        raise UserError(f"{path} has the methods {', '.join(known)}; say which one in method.name")
    for settings in classes:
        if name is None or name in _names(settings):
            return settings
    raise UserError(f"{path} has no method '{cut(name)}'; it has {', '.join(known)}")


def _names(settings: type[MethodSettings]) -> tuple[str, ...]:
    """Return the names that a class of settings takes; none where it leaves the name open, or where it is no text."""
    annotation = settings.model_fields["name"].annotation
    names = get_args(annotation) if get_origin(annotation) is Literal else ()
    return names if all(isinstance(name, str) for name in names) else ()


def completed(section: Mapping[str, Any], settings: type[OwnMethod]) -> dict[str, Any]:
    """Return a config's `method` with its name, and the checksum of the file that was run."""
    return {"name": _names(settings)[0], **section, "checksum": checksum_of(settings.source)}


@contextmanager
def told(method: object) -> Iterator[None]:
    """Turn an exception from a file of one's own into a UserError of one line. Nothing for built-in methods.

    A ValidationError is the file's own only if the file raised it: else it is of what the config says.
    `method`: settings, or the path of the file; None for nothing.
    """
    path = method if isinstance(method, str) else getattr(method, "path", None)
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if path is None or (isinstance(error, ValidationError) and not _lines_of(path, error)):
            raise
        raise UserError(_in_a_line(path, error)) from error


def _lines_of(path: str, error: BaseException) -> list[int | None]:
    """Return the lines of the file that an exception came through."""
    return [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]


def _in_a_line(path: str, error: BaseException) -> str:
    """Say what went wrong in a file, and in which line of it."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}, line {error.lineno}: {error.msg}; mend the file"
    lines = _lines_of(path, error)
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {type(error).__name__}: {cut(one_line(_words_of(error)), 200)}; mend the file"


def _words_of(error: BaseException) -> object:
    """Return what to say of an exception: of pydantic's, the first of its errors."""
    if not isinstance(error, ValidationError):
        return error
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
