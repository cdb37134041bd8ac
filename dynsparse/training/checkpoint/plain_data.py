"""Refuse what is not plain data and dense tensors: before it is built, and again when it is."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynsparse.training.checkpoint.limits import DamagedError

_PROTOCOL = 2
"""Protocol of the pickles that torch.save makes."""
_STRANGE = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_DEEPEST = 32
_BYTES = {
    f"{kind}Storage": size
    for size, kinds in {
        1: ("Bool", "Byte", "Char"),
        2: ("BFloat16", "Half", "Short"),
        4: ("Float", "Int"),
        8: ("Double", "Long"),
    }.items()
    for kind in kinds
}
"""Bytes of a value of each of torch's storages that we write."""


def check_pickle(content: bytes, entries: Mapping[str, int]) -> None:
    """Raise DamagedError unless the pickle makes nothing but tensors and mappings, each tensor of an entry's size.

    `entries` are the bytes of each entry, by its name. This first reading builds no tensor.
    """
    try:
        for code, argument, _ in pickletools.genops(content):
            if code.name in _STRANGE or (code.name == "PROTO" and argument != _PROTOCOL):
                raise DamagedError(f"holds other than plain data and dense tensors ({code.name})")
        _DryUnpickler(content, entries).load()
    except DamagedError:
        raise
    except Exception:  # noqa: BLE001 - whatever it stumbles over
        raise DamagedError("is damaged (its pickle is not sound)") from None


class _DryUnpickler(pickle.Unpickler):
    """Reads the pickle and makes None of each tensor, once it has found that its storage is there."""

    def __init__(self, content: bytes, entries: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self._entries = entries

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _StateDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _no_tensor
        if module == "torch" and name in _BYTES:
            return name
        raise DamagedError(f"holds other than plain data and dense tensors ({module}.{name!a})")

    def persistent_load(self, pid: Any) -> None:
        word, kind, key, _, values = pid
        if word != "storage" or self._entries[key] != _BYTES[kind] * values:
            raise DamagedError(f"is damaged (its tensor {key!a} has another size than it is said to have)")


class _StateDict(OrderedDict[Any, Any]):
    """A mapping that may have the one attribute of a module's state_dict, the versions of its modules."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() != {"_metadata"}:
            raise DamagedError("holds other than plain data and dense tensors (BUILD)")


def _no_tensor(*_: Any) -> None:
    return None


def check_plain(content: Any, held: int) -> None:
    """Raise DamagedError unless the content fits into the `held` bytes of its archive.

    No part may be met more often than it is stored, or nest without end. Tensors may share no memory.
    """
    parts_left, bytes_left = held, held
    stack = [(content, 0)]
    while stack:
        value, depth = stack.pop()
        parts_left -= 1
        if depth > _DEEPEST or parts_left < 0:
            raise DamagedError("nests too deeply" if depth > _DEEPEST else "holds a part again and again")
        if isinstance(value, Tensor):
            bytes_left -= value.numel() * value.element_size()
            _check_tensor(value)
            if bytes_left < 0:
                raise DamagedError("holds tensors that share memory")
        elif isinstance(value, Mapping):
            stack += [(item, depth + 1) for pair in (value.keys(), value.values()) for item in pair]
        elif isinstance(value, (list, tuple)):
            stack += [(item, depth + 1) for item in value]
        else:
            _check_scalar(value)


def _check_tensor(value: Tensor) -> None:
    dense = value.is_contiguous() or (value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last))
    if type(value) is not Tensor or value.requires_grad or value.layout != torch.strided or not dense:
        raise DamagedError("holds a tensor that is not dense")


def _check_scalar(value: Any) -> None:
    if isinstance(value, int) and abs(value) >= 1 << 64:
        raise DamagedError("holds a number of more than 64 bits")
    if not (value is None or isinstance(value, (bool, int, float, str))):
        raise DamagedError(f"holds other than plain data and dense tensors ({type(value).__name__})")
