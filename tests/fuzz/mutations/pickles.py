"""Checkpoints whose pickle is hostile, within what `torch.load(weights_only=True)` lets pass and without."""

from __future__ import annotations

import collections
import os
import pickle
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from tests.fuzz.mutations.archives import Entry, archive, entries_of
from tests.fuzz.mutations.registry import mutation
from tests.fuzz.mutations.which import checkpoints, replace, steps
from tests.fuzz.scene import Scene

_LARGE = (2_000_000_000, 10**10, 10**15)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


def pickled(content: Any) -> bytes:
    """Pickle by the protocol and under the names of torch."""
    text = pickle.dumps(content, protocol=2)
    return text.replace(b"c__builtin__\n", b"cbuiltins\n")


def nested(depth: int, opening: bytes = b"]", closing: bytes = b"a") -> bytes:
    return b"\x80\x02" + opening * depth + closing * (depth - 1) + b"."


def _laughs(levels: int, width: int) -> list[Any]:
    value: list[Any] = ["x"]
    for _ in range(levels):
        value = [value] * width
    return value


def _itself(kind: type) -> Any:
    if kind is list:
        value: Any = [1]
        value.append(value)
    else:
        value = {"x": 1}
        value["y"] = value
    return value


BODIES: dict[str, Callable[[Random], bytes]] = {
    "a bytearray of gigabytes": lambda rng: pickled(Call(bytearray, rng.choice(_LARGE))),
    "a bytearray of a string": lambda rng: pickled(Call(bytearray, "x", "utf-99")),
    "a counter": lambda rng: pickled(Call(collections.Counter, rng.choice((1, None, "x" * 10**6, {"x": 1})))),
    "a set": lambda rng: pickled(Call(set, rng.choice(([1, 2], [[1]], 1)))),
    "a complex number": lambda rng: pickled(Call(complex, rng.choice(("x", 1, 1e308)))),
    "a size": lambda rng: pickled(Call(torch.Size, rng.choice(([10**9] * 9, [-1], ["x"], 1)))),
    "a device": lambda rng: pickled(Call(torch.device, rng.choice(("cuda:99", "meta", "x", 1)))),
    "a function of the system": lambda rng: pickled(Call(os.system, "touch ran")),
    "an evaluation": lambda rng: pickled(Call(eval, "1")),
    "a class": lambda rng: pickled(collections.Counter),
    "a dtype": lambda rng: pickled(torch.float32),
    "an ordered dict of a list": lambda rng: pickled(Call(collections.OrderedDict, rng.choice(([[1, 2]], [1], 1)))),
    "deep lists": lambda rng: nested(rng.choice((500, 5_000, 200_000))),
    "deep tuples": lambda rng: b"\x80\x02)" + b"\x85" * rng.choice((500, 5_000, 200_000)) + b".",
    "deep dicts": lambda rng: b"\x80\x02" + b"}K\x01" * 5_000 + b"N" + b"s" * 5_000 + b".",
    "a list in itself": lambda rng: pickled(_itself(list)),
    "a dict in itself": lambda rng: pickled(_itself(dict)),
    "a billion laughs": lambda rng: pickled(_laughs(10, 10)),
    "some laughs": lambda rng: pickled(_laughs(6, 10)),
    "a huge number": lambda rng: pickled(rng.choice((2**2000, -(2**2000), 2**63))),
    "a text of 50 MB": lambda rng: pickled("x" * 50_000_000),
    "a text that is no UTF-8": lambda rng: b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "a lone surrogate": lambda rng: b"\x80\x02X\x03\x00\x00\x00\xed\xa0\x80.",
    "a text longer than the file": lambda rng: b"\x80\x02X\xff\xff\xff\x7fx.",
    "bytes longer than the file": lambda rng: b"\x80\x03B\xff\xff\xff\x7fx.",
    "nothing": lambda rng: b"",
    "an end alone": lambda rng: b".",
    "no end": lambda rng: b"\x80\x02}",
    "an empty stack": lambda rng: b"\x80\x02s.",
    "a mark that is missing": lambda rng: b"\x80\x02(K\x01K\x02.",
    "a memo that is missing": lambda rng: b"\x80\x02h\x07.",
    "a key that cannot be hashed": lambda rng: b"\x80\x02}]K\x01s.",
    "another protocol": lambda rng: pickle.dumps({"x": 1}, protocol=rng.choice((0, 1, 3, 4, 5))),
    "noise": lambda rng: b"\x80\x02" + rng.randbytes(200),
    "a million numbers": lambda rng: pickled(list(range(1_000_000))),
    "many memos": lambda rng: b"\x80\x02]" + b"r\xff\xff\xff\x7f" + b".",
}


def wrapped(body: bytes, where: str) -> bytes:
    """Put a body in the place of a checkpoint's content, of its state, or below."""
    value = body.removeprefix(b"\x80\x02").removesuffix(b".")
    if where == "the whole":
        return body
    inner = value if where == "the state" else b"}X\x06\x00\x00\x00config" + value + b"s"
    if where == "the sum":
        inner = b"}"
    digest = value if where == "the sum" else b"X\x40\x00\x00\x00" + b"0" * 64
    head = b"\x80\x02}(X\x06\x00\x00\x00formatK\x02X\x06\x00\x00\x00sha256" + digest
    return head + b"X\x05\x00\x00\x00state" + inner + b"u."


def _of_checkpoints(name: str, body: Callable[[Random], bytes]) -> None:
    @mutation("archive", f"pickle holds {name}")
    def act(rng: Random, scene: Scene) -> str:
        which, paths = checkpoints(rng, scene)
        where = rng.choice(("the whole", "the state", "the state", "the config", "the sum"))
        made = wrapped(body(rng), where)
        entries = entries_of(steps(scene)[0].read_bytes())
        content = archive(Entry(e.name, made if e.name.endswith("data.pkl") else e.data) for e in entries)
        for path in paths:
            replace(path, content)
        return f"{name} for {where} in the pickle of {which}"


for _name, _body in BODIES.items():
    _of_checkpoints(_name, _body)


@mutation("archive")
def pickle_is_patched(rng: Random, scene: Scene) -> str:
    """Numbers and names in the pickle: sizes, offsets and strides of tensors, kinds of storages, functions."""
    which, paths = checkpoints(rng, scene)
    entries = entries_of(steps(scene)[0].read_bytes())
    entry = next(entry for entry in entries if entry.name.endswith("data.pkl"))
    old, new = rng.choice(_PATCHES)
    place = rng.choice([i for i in range(len(entry.data)) if entry.data.startswith(old, i)] or [0])
    entry.data = entry.data[:place] + new + entry.data[place + len(old) :]
    content = archive(entries)
    for path in paths:
        replace(path, content)
    return f"{old!r} is {new!r} in the pickle of {which}"


_HUGE = b"\x8a\x08" + (2**62).to_bytes(8, "little")
_GIGA = b"J" + (2**31 - 1).to_bytes(4, "little")
_PATCHES: tuple[tuple[bytes, bytes], ...] = (
    (b"K\x01", b"K\x00"),
    (b"K\x01", b"J\xff\xff\xff\xff"),
    (b"K\x01", _HUGE),
    (b"K\x01", _GIGA),
    (b"K\x01", b"N"),
    (b"K\x01", b"G?\xf0\x00\x00\x00\x00\x00\x00"),
    (b"K\x00", b"K\x07"),
    (b"K\x00", _HUGE),
    (b"K\x00", b"J\xff\xff\xff\xff"),
    (b"K\x18", _GIGA),
    (b"K\x0c", _HUGE),
    (b"FloatStorage", b"DoubleStorage"),
    (b"FloatStorage", b"QInt8Storage"),
    (b"FloatStorage", b"ComplexFloatStorage"),
    (b"FloatStorage", b"NoSuchStorage"),
    (b"ByteStorage", b"FloatStorage"),
    (b"_rebuild_tensor_v2", b"_rebuild_tensor"),
    (b"_rebuild_tensor_v2", b"_rebuild_qtensor"),
    (b"_rebuild_tensor_v2", b"_rebuild_nested_tensor"),
    (b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor"),
    (b"_rebuild_tensor_v2", b"_rebuild_meta_tensor_no_storage"),
    (b"_rebuild_tensor_v2", b"_rebuild_wrapper_subclass"),
    (b"_rebuild_tensor_v2", b"_rebuild_parameter"),
    (b"_rebuild_tensor_v2", b"_no_such_function"),
    (b"X\x03\x00\x00\x00cpu", b"X\x04\x00\x00\x00cuda"),
    (b"X\x03\x00\x00\x00cpu", b"X\x04\x00\x00\x00meta"),
    (b"X\x03\x00\x00\x00cpu", b"N"),
    (b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00garbage"),
    (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"),
    (b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000"),
    (b"X\x01\x00\x00\x001", b"X\x06\x00\x00\x00../../"),
    (b"\x89", b"\x88"),
    (b"N", b"K\x01"),
)
