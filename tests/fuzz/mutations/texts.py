"""The files of a run that are text: lines of JSON, JSON, YAML, HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutations.damage import DAMAGES
from tests.fuzz.mutations.registry import mutation, place
from tests.fuzz.mutations.which import PARTIAL_FILES, RUN_FILES, replace
from tests.fuzz.scene import Scene

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**70,
    10**400,
    -(10**400),
    0.5,
    1e308,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x",
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "x" * 100_000,
    "epoch",
    "reallocation",
    "1",
    "../outside/file.txt",
    [],
    [1, 2],
    ["x"],
    [[[[]]]],
    {},
    {"x": 1},
    {"": None},
)

JSON_FILES = ("metrics.jsonl", "history.jsonl", "lock.json", "launch.json", "summary.json")

LINES: dict[str, Callable[[Random], bytes]] = {
    "an array": lambda rng: b"[1, 2]",
    "an empty array": lambda rng: b"[]",
    "a number": lambda rng: rng.choice((b"1", b"-0", b"1e999", b"-1e999", b"1" * 5000, b"0.1e-999")),
    "a text": lambda rng: b'"epoch"',
    "a constant": lambda rng: rng.choice((b"null", b"true", b"NaN", b"Infinity")),
    "an empty object": lambda rng: b"{}",
    "deep arrays": lambda rng: b"[" * 100_000,
    "deep arrays that end": lambda rng: b"[" * 100_000 + b"]" * 100_000,
    "deep objects": lambda rng: b'{"kind":' * 50_000 + b"1" + b"}" * 50_000,
    "no UTF-8": lambda rng: rng.choice((b"\xff\xfe\xfd", b'{"kind": "\xc3\x28"}', b"\xed\xa0\x80", b"\xef\xbb\xbf{}")),
    "UTF-16": lambda rng: '{"kind": "epoch"}'.encode("utf-16"),
    "NUL bytes": lambda rng: bytes(rng.choice((1, 4096))),
    "line ends of other kinds": lambda rng: b'{"kind":\x0b"epoch"}\r{}\x85\x0c\xe2\x80\xa8',
    "a line of 50 MB": lambda rng: rng.choice((b"x", b" ", b'"', b"[", b"1")) * 50_000_000,
    "a text of 50 MB": lambda rng: b'"' + b"x" * 50_000_000 + b'"',
    "a foreign line": lambda rng: b"Tue Jan  1 00:00:00 UTC 2030: started",
    "an epoch of nothing": lambda rng: b'{"kind": "epoch"}',
    "a reallocation of nothing": lambda rng: b'{"kind": "reallocation"}',
    "an unknown kind": lambda rng: b'{"kind": "x", "epoch": 0, "step": 1}',
    "a kind that is no text": lambda rng: b'{"kind": ["epoch"], "epoch": 0, "step": 1}',
    "keys twice": lambda rng: b'{"kind": "epoch", "kind": "reallocation", "epoch": 0, "epoch": [], "step": {}}',
    "numbers as texts": lambda rng: b'{"kind": "epoch", "epoch": "0", "step": "1"}',
    "a huge epoch": lambda rng: b'{"kind": "epoch", "epoch": 1e999, "step": ' + b"9" * 4000 + b"}",
    "a number of 5,000 digits": lambda rng: b'{"kind": "epoch", "epoch": ' + b"9" * 5000 + b', "step": 1}',
    "many empty lines": lambda rng: b"\n" * 300_000,
    "many lines": lambda rng: b'{"kind": "epoch", "epoch": 0, "step": 1}\n' * 20_000,
}
"""Texts for a line of JSON lines, or for a whole JSON file."""


@mutation("text")
def bytes_damaged(rng: Random, scene: Scene) -> str:
    name, damage = rng.choice(RUN_FILES), rng.choice(DAMAGES)
    path = scene.run / name
    replace(path, damage(rng, path.read_bytes() if path.exists() else b""))
    return f"{damage.__name__} of {name}"


def _whole(name: str, content: Callable[[Random], bytes]) -> None:
    @mutation("text", f"is {name}")
    def act(rng: Random, scene: Scene) -> str:
        file = rng.choice(RUN_FILES)
        replace(scene.run / file, content(rng) + rng.choice((b"", b"\n")))
        return f"{file} is {name}"

    @mutation("text", f"has {name}")
    def among(rng: Random, scene: Scene) -> str:
        file = rng.choice(("metrics.jsonl", "metrics.jsonl", "history.jsonl", *RUN_FILES))
        path = scene.run / file
        lines = path.read_bytes().splitlines() if path.exists() else []
        lines.insert(rng.choice((0, len(lines), place(rng, len(lines) + 1))), content(rng))
        replace(path, b"\n".join(lines) + rng.choice((b"", b"\n")))
        return f"{name} in {file}"


for _name, _content in LINES.items():
    _whole(_name, _content)


def _paths(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) in plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [pair for key, item in items for pair in ((value, key), *_paths(item))]


def edit(rng: Random, value: Any) -> str:
    """Change, remove or add one key somewhere in plain data."""
    places = _paths(value)
    if not places:
        return "nothing"
    container, key = places[place(rng, len(places))]
    action = rng.choice(("replace", "replace", "replace", "remove", "add", "rename"))
    if action == "remove":
        del container[key]
        return f"without {key}"
    odd = rng.choice(ODD_VALUES)
    if action == "replace" or isinstance(container, list):
        container[key] = odd
        return f"{key} is {str(odd)[:30]!r}"
    container[f"{key} of another kind" if action == "rename" else "unknown"] = container.pop(key, odd)
    return f"{key} under another name"


@mutation("text")
def values_changed(rng: Random, scene: Scene) -> str:
    """Lines that are JSON, and not what a run writes: wrong types for a key, missing keys, unknown keys."""
    name = rng.choice((*JSON_FILES, "metrics.jsonl", "metrics.jsonl", "summary.json"))
    path = scene.run / name
    if not path.exists():
        path = scene.run / (name := "metrics.jsonl")
    whole = name.endswith(".json")
    lines = [path.read_text()] if whole else path.read_text().splitlines()
    said = []
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        number = place(rng, len(lines))
        content = json.loads(lines[number])
        said.append(edit(rng, content))
        lines[number] = json.dumps(content)
    replace(path, "\n".join([*lines, ""]).encode(errors="surrogatepass"))
    return f"{name}: {'; '.join(said)}"


@mutation("text")
def lines_moved(rng: Random, scene: Scene) -> str:
    name = rng.choice(("metrics.jsonl", "history.jsonl"))
    path = scene.run / name
    lines = path.read_bytes().splitlines(keepends=True)
    how = rng.choice(("shuffled", "twice", "reversed", "half a line at the end"))
    if how == "shuffled":
        rng.shuffle(lines)
    elif how == "half a line at the end":
        lines.append(lines[-1][: len(lines[-1]) // 2])
    else:
        lines = lines * 2 if how == "twice" else lines[::-1]
    replace(path, b"".join(lines))
    return f"{name}: {how}"


_MARK = b"# The resolved config of a dynsparse run.\n"
_LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (ord("b") + i, ord("b") + i, b",".join([b"*%c" % (ord("a") + i)] * 9)) for i in range(9)
)
YAMLS: dict[str, bytes] = {
    "a list": b"- 1\n- 2\n",
    "a billion laughs": _LAUGHS,
    "itself": b"a: &a [*a]\n",
    "deep lists": b"a: " + b"[" * 20_000,
    "deep lists that end": b"a: " + b"[" * 2_000 + b"]" * 2_000,
    "an object of Python": b"a: !!python/object/apply:os.system ['touch ran']\n",
    "an unknown tag": b"a: !x 1\n",
    "dates": b"2030-01-01: 2030-01-01\nmodel: 2030-01-01\n",
    "an anchor that is missing": b"a: *b\n",
    "tabs": b"a:\n\t- b\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "keys of all kinds": b"? [1, 2]\n: 3\n? {a: b}\n: c\nnull: 1\n1.5: 2\n",
    "merges": b"a: &a {b: 1}\nc: {<<: [*a, *a], d: 2}\n<<: 1\n",
    "a huge number": b"seed: " + b"9" * 5_000 + b"\nepochs: 1e999\n",
    "base 60": b"a: 190:20:30\nb: 0x_\nc: 0b_\n",
    "control characters": b"a: \x01\x02\n",
    "nothing but the mark": b"",
}


@mutation("text")
def config_is_other_yaml(rng: Random, scene: Scene) -> str:
    name = rng.choice(list(YAMLS))
    replace(scene.run / "config.yaml", rng.choice((_MARK, _MARK, b"")) + YAMLS[name])
    return f"config.yaml holds {name}"


@mutation("text")
def config_values_changed(rng: Random, scene: Scene) -> str:
    import yaml

    path = scene.run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    said = edit(rng, content)
    try:
        text = yaml.safe_dump(content)
    except (yaml.YAMLError, UnicodeError):
        return "nothing"
    replace(path, _MARK + text.encode(errors="surrogatepass"))
    return f"config.yaml: {said}"


@mutation("partial")
def text_in_partial_files(rng: Random, scene: Scene) -> str:
    name = rng.choice(PARTIAL_FILES)
    replace(Path(scene.run / name), rng.choice((b"", b"x", b"{", bytes(4096))))
    return f"a {name} that was left"
