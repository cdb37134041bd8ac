"""Networks of other libraries: options for their constructors, and images that they cannot take."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Container, Mapping
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, WithJsonSchema
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.models import shapes
from pipelines.common.settings import MOST
from pipelines.common.text import cut, nearest

LONGEST = 100
"""Options, and entries of a list in one."""


def _option(value: Any) -> Any:
    """Return an option's value as it is. Raises ValueError for what no constructor is given from a config."""
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, (bool, int, float, str)):
            raise ValueError(f"is {cut(value)}; an option is a number, true or false, a word, or a list of such")
        if not isinstance(one, (bool, str)) and not -MOST <= one <= MOST:
            raise ValueError(f"is {cut(value)}; numbers are from -{MOST:,} to {MOST:,}")
    if isinstance(value, list) and len(value) > LONGEST:
        raise ValueError(f"has {len(value):,} entries; a list has {LONGEST} at most")
    return value


_SCALAR: list[dict[str, Any]] = [{"type": kind} for kind in ("boolean", "number", "string")]
_SCHEMA = {"anyOf": [*_SCALAR, {"type": "array", "items": {"anyOf": _SCALAR}, "maxItems": LONGEST}]}
Options = Annotated[
    dict[str, Annotated[Any, BeforeValidator(_option), WithJsonSchema(_SCHEMA)]], Field(max_length=LONGEST)
]
"""Arguments of a constructor by name: numbers, words, true or false, and lists of such."""
Make = Callable[..., nn.Module]


def build(
    name: str, make: Make, options: Mapping[str, Any], image_shape: tuple[int, int, int], classes: int
) -> nn.Module:
    """Call `make` with the options. UserError if the network does not take them, or such images."""
    height, width = image_shape[1:]
    try:
        on_meta = torch.get_default_device().type == "meta"
        model = (_made_without_weights if on_meta else _made)(name, make, options)
        require_logits(name, _try_forward(model, image_shape), classes)
    except UserError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Networks of others raise about anything at options that do not fit each other.
        reason = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
        raise UserError(
            f"model.name is {name}, which cannot take images of {height}x{width}{_with(options)} ({cut(reason, 200)}); "
            f"choose another image size or model{' or other options' if options else ''}"
        ) from error
    return model


def require_known(name: str, options: Mapping[str, Any], reserved: Collection[str]) -> None:
    """Raise ValueError for an option that the trainer sets itself, and for a probability outside [0, 1)."""
    for key, value in options.items():
        if key in reserved:
            raise ValueError(f"options: {key} of {name} follows from the config's other sections; leave it out")
        is_probability = re.search("drop|prob", key) and isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_probability and not 0 <= value < 1:
            raise ValueError(f"options: {key} is {value:g}; a probability is at least 0 and below 1")


def require_logits(name: str, output: object, classes: int) -> None:
    """Raise UserError unless a network gives one logit for each class of one image."""
    if not isinstance(output, Tensor) or tuple(output.shape) != (1, classes):
        raise UserError(f"model.name is {name}, which does not give {classes} logits: choose a classifier")


def _made_without_weights(name: str, make: Make, options: Mapping[str, Any]) -> nn.Module:
    """Make the network on the meta device, in the first way that its constructor bears.

    Some read values of buffers, such as the rates of their blocks. Others copy into buffers on their weights' device,
    as Swin V2, or run a part of themselves on an image, as hybrid ViTs. What bears neither is made with its weights.
    """
    for device in (shapes.without_weights, lambda: torch.device("meta")):
        try:
            with device():
                return _made(name, make, options)
        except (RuntimeError, ValueError) as error:
            if not isinstance(error, RuntimeError) and not isinstance(error.__cause__, RuntimeError):
                raise
    with torch.device("cpu"):
        return _made(name, make, options).to("meta")


def _made(name: str, make: Make, options: Mapping[str, Any]) -> nn.Module:
    """Make the network. UserError for options that its constructor does not know, with the nearest that it does."""
    if not options:
        return make()
    try:
        model = make(**options)
    except Exception as error:
        found = _UNEXPECTED.search(str(error))
        if found is None:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        unknown = found[1]
    else:
        _require_kinds(name, model, options)
        read = _read_by(type(model), partial(make, **options))
        unread = [key for key in options if key not in read]
        if not unread:
            return model
        unknown = unread[0]
    known = [key for key in inspect.signature(type(make())).parameters if key not in ("args", "kwargs")]
    raise UserError(f"model.options: {name} has no option '{cut(unknown)}'{nearest(unknown, known)}")


_UNEXPECTED = re.compile(r"unexpected keyword argument(?:\(s\):)? \[?'(\w+)'")


class _Anything:
    """A set that holds everything."""

    def __contains__(self, key: object) -> bool:
        return True


def _read_by(kind: type[nn.Module], make: Make) -> Container[str]:
    """Return the options that a network's constructor reads. It may take others too, and forget them.

    torchvision's ConvNeXt and MobileNetV3 do, and MetaFormer of older timm: whether one does shows with an option that
    nobody has. What it reads are then the options of the class, and of the functions of its module and of timm's
    builder. Most of timm's hand on what they do not read, and somebody refuses it at last.
    """
    if not _takes_anything(kind):
        return _Anything()
    try:
        make(no_such_option=0)
    except Exception:  # noqa: BLE001 - whoever refuses it, and however
        return _Anything()
    modules = [module for name in (kind.__module__, "timm.models._builder") if (module := sys.modules.get(name))]
    members = [(one, module) for module in modules for _, one in inspect.getmembers(module, inspect.isfunction)]
    readers: list[Callable[..., Any]] = [kind, *(one for one, module in members if one.__module__ == module.__name__)]
    return {key for one in readers for key in inspect.signature(one).parameters}


def _takes_anything(kind: type[nn.Module]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(kind).parameters.values())


def _require_kinds(name: str, model: nn.Module, options: Mapping[str, Any]) -> None:
    """Raise UserError for an option of another kind than the constructor's default: a flag, or a number."""
    parameters = inspect.signature(type(model)).parameters
    for key, value in options.items():
        default = parameters[key].default if key in parameters else None
        is_flag = isinstance(default, bool)
        if is_flag and not isinstance(value, bool):
            raise UserError(f"model.options: {key} of {name} is '{cut(value)}'; it is true or false")
        if isinstance(default, int | float) and not is_flag and isinstance(value, bool | str):
            raise UserError(f"model.options: {key} of {name} is '{cut(value)}'; it is a number")


def _with(options: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{key}={cut(value)}' for key, value in options.items())}" if options else ""


def _try_forward(model: nn.Module, image_shape: tuple[int, int, int]) -> object:
    """Compute shapes alone. Images of a wrong size are a ValueError now, not in training."""
    try:
        return shapes.forward(model, shapes.on_meta(model), image_shape)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
