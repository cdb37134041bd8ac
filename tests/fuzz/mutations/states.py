"""Checkpoints with a right checksum and a wrong content."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dynsparse.training import checkpoint
from dynsparse.training.checkpoint.deflating import save_deflated
from tests.fuzz.mutations.registry import mutation, place
from tests.fuzz.mutations.tensors import OTHERS, another
from tests.fuzz.mutations.which import checkpoints, remove, steps
from tests.fuzz.scene import Scene

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    2**31,
    2**63,
    2**70,
    -(2**70),
    0.5,
    -1.0,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x",
    "x" * 1_000_000,
    "a\nb",
    "\x1b[31m",
    "../outside/evil",
    [],
    [0],
    [1, 2, 3],
    ["x"],
    (),
    (1, 2),
    {},
    {"x": 1},
    {1: 2},
    {None: None},
    torch.ones(2),
    torch.empty(0),
    torch.tensor(1.0),
    torch.zeros(3, dtype=torch.uint8),
)

_GIANT = 1 << 24
"""Elements above which no checksum is computed: it would need the whole of the tensor in memory."""


def sign(path: Path, state: Any, changed: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write a state as the trainer does, its checksum right wherever one can be computed.

    `changed` are other values beside the state or in its place; `...` leaves the key out.
    """
    remove(path)
    state = changed.get("state", state)
    try:
        checksum = "0" * 64 if _has_giants(state) else checkpoint.checksum(state)
    except Exception:  # noqa: BLE001 - of tensors of every kind, lists within themselves
        checksum = "0" * 64
    content = {"format": checkpoint.FORMAT, "sha256": checksum, "state": state} | dict(changed)
    with path.open("wb") as file:
        save_deflated({key: value for key, value in content.items() if value is not ...}, file)


def _has_giants(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > _GIANT
    if isinstance(value, dict):
        return any(map(_has_giants, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_giants, value))


Edit = Callable[[Random, dict[str, Any]], str]
"""Changes a state in place. Returns what it did."""


def _signed(rng: Random, scene: Scene, edit: Edit) -> str:
    """Change some of the checkpoints in the same way; each keeps its own step, or all get the newest state."""
    which, paths = checkpoints(rng, scene)
    newest = steps(scene)[0]
    drawn = rng.getrandbits(64)
    said = ""
    for path in paths:
        state = checkpoint.read(path if path.exists() else newest)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = edit(Random(drawn), state)
            sign(path, state)
    scene.signed = True
    return f"{which}: {said}"


def signed(name: str | None = None, *, absurd_config: bool = False) -> Callable[[Edit], Edit]:
    def add(edit: Edit) -> Edit:
        @mutation("signed", name or edit.__name__, absurd_config=absurd_config)
        def act(rng: Random, scene: Scene) -> str:
            return _signed(rng, scene, edit)

        return edit

    return add


def find(rng: Random, state: dict[str, Any]) -> tuple[list[Any], Any, Any]:
    """A place in the tree, its parts all as likely however large: keys that lead there, what holds it, its key."""
    container: Any = state
    keys: list[Any] = []
    while True:
        key = rng.choice(list(container)) if isinstance(container, dict) else place(rng, len(container))
        keys.append(key)
        inner = container[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.2:
            return keys, container, key
        container = inner


def change(rng: Random, state: dict[str, Any]) -> str:
    """Remove, add, rename or replace one thing somewhere in the tree."""
    keys, container, key = find(rng, state)
    name = ".".join(map(str, keys))
    action = rng.choice(("replace",) * 6 + ("remove", "add", "rename", "twice"))
    if action == "remove":
        del container[key]
        return f"without {name}"
    if isinstance(container, list) and action in ("add", "rename", "twice"):
        container.insert(key, container[key] if action == "twice" else rng.choice(ODD))
        return f"one more in {name}"
    if action in ("add", "twice"):
        container[rng.choice(("unknown", "", 1, None, "a\nb", True))] = rng.choice(ODD)
        return f"a key more beside {name}"
    if action == "rename":
        container[f"{key}x"] = container.pop(key)
        return f"{name} is renamed"
    if isinstance(container[key], Tensor) and rng.random() < 0.8:
        kind, container[key] = another(rng, container[key])
        return f"{name} is {kind}"
    odd = rng.choice(ODD)
    container[key] = odd
    return f"{name} is {type(odd).__name__} {str(odd)[:40]!r}"


for _part in ("progress", "weights", "masks", "optimizer", "method", "data", "ranks", "versions", "config"):

    def _edit_part(rng: Random, state: dict[str, Any], part: str = _part) -> str:
        if isinstance(state[part], list):
            return f"{part}: {change(rng, state[part][0])}"
        if not state[part] or rng.random() < 0.1:
            state[part] = rng.choice(ODD)
            return f"{part} is {str(state[part])[:40]!r}"
        return f"{part}: {change(rng, state[part])}"

    for _times in ("", ", once more", ", and again"):
        signed(f"{_part} changed{_times}", absurd_config=_part == "config")(_edit_part)


@signed(absurd_config=True)
def anything_changed(rng: Random, state: dict[str, Any]) -> str:
    return "; ".join(change(rng, state) for _ in range(rng.choice((1, 1, 2, 5))) if state)


for _kind in OTHERS:

    def _other_tensor(rng: Random, state: dict[str, Any], kind: str = _kind) -> str:
        for _ in range(200):
            keys, container, key = find(rng, {name: state[name] for name in state if name not in ("config", "data")})
            if isinstance(container[key], Tensor):
                try:
                    container[key] = OTHERS[kind](container[key].detach())
                except (RuntimeError, NotImplementedError):
                    continue
                return f"{'.'.join(map(str, keys))} is {kind}"
        return "nothing"

    signed(f"a tensor is {_kind}")(_other_tensor)


@signed()
def mask_bits(rng: Random, state: dict[str, Any]) -> str:
    """Change mask bits: as many bytes, but other counts than there are values; bits beyond the last unit."""
    name = rng.choice(list(state["masks"]["layers"])) if state["masks"]["layers"] else None
    if name is None:
        return "nothing"
    mask = state["masks"]["layers"][name]["mask"]
    how = rng.choice(("a bit", "the last byte", "all", "none"))
    if how == "a bit":
        mask[place(rng, len(mask))] ^= 1 << rng.randrange(8)
    elif how == "the last byte":
        mask[-1] |= 0xFF
    else:
        mask.fill_(255 if how == "all" else 0)
    return f"{how} of the mask of {name}"


@signed()
def mask_and_values(rng: Random, state: dict[str, Any]) -> str:
    """Mask, values and budget agree, and are others than the method would have left."""
    layers = state["masks"]["layers"]
    if not layers:
        return "nothing"
    name = rng.choice(list(layers))
    layers[name]["mask"].zero_()
    state["weights"][name] = state["weights"][name][:0].clone()
    for key, value in state["optimizer"].get(name, {}).items():
        if isinstance(value, Tensor) and value.dim():
            state["optimizer"][name][key] = value[:0].clone()
    state["masks"]["budget"] = sum(state["weights"][other].numel() for other in layers)
    return f"no active unit in {name}, budget {state['masks']['budget']}"


@signed()
def shapes(rng: Random, state: dict[str, Any]) -> str:
    layers = state["masks"]["layers"]
    if not layers:
        return "nothing"
    layer = layers[rng.choice(list(layers))]
    if rng.random() < 0.4:
        layer["mask_dims"] = rng.choice((-1, 0, 1, 2, 3, 5, 2**40, True, "2", None, 1.0))
        return f"mask_dims is {layer['mask_dims']!r}"
    odd = (
        [],
        [0],
        [-1, -36],
        [2**40, 2**40],
        [2**62],
        [10**6, 10**6],
        [0, 24],
        [24],
        [1] * 100,
        ["24"],
        [24.0],
        [True],
    )
    layer["shape"] = rng.choice((*odd, [*layer["shape"], 1], layer["shape"][::-1], tuple(layer["shape"]), None))
    return f"shape is {layer['shape']!r}"


@signed()
def numbers(rng: Random, state: dict[str, Any]) -> str:
    """Negative, absurd or contradictory counts."""
    holder, key = rng.choice(
        (
            (state["progress"], "step"),
            (state["progress"], "epoch"),
            (state["progress"], "best_top1"),
            (state["progress"], "skipped_in_a_row"),
            (state["progress"], "seconds"),
            (state["data"], "epoch"),
            (state["data"], "batch"),
            (state["data"], "global_batch"),
            (state["data"], "samples"),
            (state["data"], "seed"),
            (state["masks"], "budget"),
        )
    )
    value = rng.choice((-1, 0, 1, 3, 7, 10**9, 2**63, 2**70, -(2**70), 1.5, math.nan, math.inf, True, None, "1"))
    holder[key] = value
    return f"{key} is {value!r}"


@signed()
def ranks(rng: Random, state: dict[str, Any]) -> str:
    one = state["ranks"][0]
    how = rng.choice(("none", "two", "thousands", "an empty one", "None", "a mapping", "others' buffers"))
    others = {"running": torch.ones(3), **one["buffers"]}
    state["ranks"] = {
        "none": [],
        "two": [one, one],
        "thousands": [one] * 10_000,
        "an empty one": [{}],
        "None": [None],
        "a mapping": {0: one},
        "others' buffers": [one, {**one, "buffers": others}],
    }[how]
    return f"ranks: {how}"


@signed()
def random_states(rng: Random, state: dict[str, Any]) -> str:
    random = state["ranks"][0]["random"]
    random["cpu"] = rng.choice(
        (
            torch.zeros(5056, dtype=torch.uint8),
            torch.full((5056,), 255, dtype=torch.uint8),
            torch.zeros(1, dtype=torch.uint8),
            torch.zeros(5056),
            torch.zeros(0, dtype=torch.uint8),
            None,
            b"x",
        )
    )
    return "another random state"


@signed()
def bad_samples(rng: Random, state: dict[str, Any]) -> str:
    odd = (
        {-1: "x"},
        {10**9: "x"},
        {"0": "x"},
        {0: None},
        {0: 1},
        [0],
        {0: "a\nb"},
        dict.fromkeys(range(100), "x"),
        None,
    )
    state["ranks"][0]["bad_samples"] = rng.choice(odd)
    return f"bad samples {str(state['ranks'][0]['bad_samples'])[:60]}"


@signed()
def sums(rng: Random, state: dict[str, Any]) -> str:
    state["ranks"][0]["sums"] = rng.choice(
        (
            torch.full((3,), math.nan, dtype=torch.float64),
            torch.zeros(4),
            torch.zeros(3, dtype=torch.int64),
            torch.ones(()),
        )
    )
    return "other sums"


@signed(absurd_config=True)
def absurd_config(rng: Random, state: dict[str, Any]) -> str:
    section, key, value = rng.choice(
        (
            ("model", "hidden", [10**9]),
            ("model", "hidden", [10**5, 10**5]),
            ("model", "hidden", [1] * 10_000),
            ("model", "hidden", []),
            ("model", "channels", [10**6]),
            ("model", "name", "no such model"),
            ("model", "name", "resnet50"),
            ("model", "name", "wide_resnet"),
            ("model", "depth", 10**6),
            ("data", "shape", [1, 10**6, 10**6]),
            ("data", "shape", [10**9, 1, 1]),
            ("data", "samples", 10**12),
            ("data", "number_of_classes", 10**10),
            ("data", "name", "imagenet"),
            ("data", "name", "no such data"),
            ("data", "path", "/dev/zero"),
            ("data", "threads", 10**6),
            ("method", "name", "tied"),
            ("method", "name", "no such method"),
            ("method", "period", 0),
            ("sparsity", "fc", 2.0),
            ("sparsity", "granularity", 7),
            ("sparsity", "include", ["*"]),
            ("train", "epochs", 10**9),
            ("train", "global_batch_size", 10**9),
            ("train", "lr", None),
            ("checkpoint", "keep", 10**9),
            (None, "seed", -1),
            (None, "seed", 2**70),
            (None, "name", "../outside/evil"),
            (None, "name", ""),
            (None, "name", "x" * 300),
            (None, "name", "a\nb"),
            (None, "runs", "/proc"),
            (None, "unknown", 1),
        )
    )
    (state["config"] if section is None else state["config"][section])[key] = value
    return f"{section}.{key} is {str(value)[:60]}"


@signed()
def another_runs_parts(rng: Random, state: dict[str, Any]) -> str:
    """A part that goes well with itself, but not with the rest."""
    part = rng.choice(("weights", "masks", "optimizer"))
    state[part] = {} if part != "masks" else {"budget": 0, "layers": {}}
    return f"{part} of a run without layers"


@signed()
def initial_weights(rng: Random, state: dict[str, Any]) -> str:
    name = rng.choice(list(state["weights"]))
    odd = (torch.ones(3), torch.tensor(math.nan), None, 1, torch.ones(1).expand(10**9), {})
    state["initial_weights"] = {name: rng.choice(odd)}
    return f"initial weights of {name}"


@mutation("signed")
def another_format(rng: Random, scene: Scene) -> str:
    which, paths = checkpoints(rng, scene)
    changed: dict[str, Any] = rng.choice(
        (
            *({"format": value} for value in (0, 1, 3, 99, -1, "2", True, 2.0, None, [2], {}, torch.tensor(2), ...)),
            *({"sha256": value} for value in ("", "x", None, 0, b"x", [], torch.ones(2), "0" * 64, ...)),
            *({"state": value} for value in (None, [], {}, 1, "x", torch.ones(2), {"config": {}}, {1: 2}, ...)),
            {"unknown": 1},
        )
    )
    for path in paths:
        sign(path, checkpoint.read(path if path.exists() else steps(scene)[0]), changed)
    scene.signed = True
    return f"{which}: {str(changed)[:80]}"


@mutation("signed")
def deep_state(rng: Random, scene: Scene) -> str:
    which, paths = checkpoints(rng, scene)
    state = checkpoint.read(steps(scene)[0])
    deep: Any = 1
    depth = rng.choice((50, 150, 250))  # More than Python's pickle writes would be for `pickles`.
    for _ in range(depth):
        deep = [deep] if rng.random() < 0.5 else {"x": deep}
    state[rng.choice(("config", "method", "data", "unknown"))] = deep
    for path in paths:
        sign(path, state)
    scene.signed = True
    return f"{which}: {depth} levels"
