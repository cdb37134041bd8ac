"""Documents that nobody means well with: one line, within seconds and little memory. And what YAML has that we take."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config import loading as config
from dynsparse.config.documents import MOST_BYTES, MOST_EXPANDED, DocumentError, load
from dynsparse.config.reading import plain, read, read_file
from dynsparse.errors import UserError
from tests.training import runs


def refusal(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        load(text)
    assert len(str(caught.value)) < 300
    return str(caught.value)


def laughs(levels: int, merge: bool = False) -> str:
    """Each line stands for nine times as much as the one before."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [x]"]
    for n in range(1, levels):
        many = ", ".join([f"*a{n - 1}"] * 9)
        lines.append(f"a{n}: &a{n} {{<<: [{many}], k{n}: [{many}]}}" if merge else f"a{n}: &a{n} [{many}]")
    return "\n".join(lines)


TOO_MUCH = f"more than {MOST_EXPANDED:,} characters, with aliases written out"

HOSTILE: dict[str, tuple[str, str]] = {
    "a billion laughs": (laughs(12), TOO_MUCH),
    "merged laughs": (laughs(12, merge=True), TOO_MUCH),
    "a chain of aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000)),
        "more than 50 levels, one in another",
    ),
    "one long text many times": (f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]", TOO_MUCH),
    "3,000 levels in flow": ("[" * 3000 + "]" * 3000, "line 1, column 51: more than 50 levels"),
    "3,000 levels in blocks": ("\n".join(" " * n + "a:" for n in range(700)), "more than 50 levels"),
    "levels of dashes": ("- " * 3000 + "x", "more than 50 levels"),
    "levels of keys": ("? " * 3000 + "x", "more than 50 levels"),
    "itself": ("a: &a [*a]", "line 1, column 8: 'a' holds itself"),
    "itself as a key": ("&a {*a : 1}", "'a' holds itself"),
    "itself merged": ("a: &a {<<: *a}", "'a' holds itself"),
    "no such anchor": ("a: *b", "found undefined alias 'b'"),
    "an anchor twice": ("a: &x 1\nb: &x 2", "found duplicate anchor"),
    "too long": ("a: " + "x" * MOST_BYTES, f"and {MOST_BYTES:,} are the most"),
    "NUL": ("a: b\0c", "line 1: holds the character U+0000"),
    "NUL written out": ('a: "\\0"', "a text holds the character U+0000, and names have no control characters"),
    "an escape code": ('a: "\\e[31m"', "a text holds the character U+001B"),
    "a line end": ("a: |\n  b\n", "a text holds the character U+000A"),
    "half a pair": ('a: "\\ud800"', "a text holds the character U+D800"),
    "half a pair as it is": ("a:\n b: \ud800", "line 2: holds the character U+D800"),
    "a control character in a key": ('"a\\x07": 1', "a text holds the character U+0007"),
    "a tab": ("a:\n\tb: 1", "line 2, column 1: while scanning for the next token found character '\\t'"),
    "two documents": ("a: 1\n---\na: 2", "expected a single document in the stream but found another document"),
    "python/object": ("!!python/object/apply:os.system ['true']", "the tag !!python/object/apply:os.system is none"),
    "a tag of ours": ("a: !include b.yaml", "line 1, column 4: the tag !include is none for this; leave it out"),
    "!!binary": ("a: !!binary aGk=", "the tag !!binary is none for this"),
    "!!set": ("a: !!set {b}", "the tag !!set is none for this"),
    "!!omap": ("a: !!omap [b: 1]", "the tag !!omap is none for this"),
    "!!pairs": ("a: !!pairs [b: 1]", "the tag !!pairs is none for this"),
    "!!bool maybe": ("a: !!bool maybe", "'maybe' is tagged as bool, and is none"),
    "!!int of a list": ("a: !!int [1]", "the tag !!int is none for this"),
    "!!int of a word": ("a: !!int x", "'x' is tagged as int, and is none"),
    "!!float of a mapping": ("a: !!float {b: 1}", "the tag !!float is none for this"),
    "!!seq of a word": ("a: !!seq b", "the tag !!seq is none for this"),
    "a tag without end": ("a: !<", "while parsing a tag"),
    "a long tag": (f"a: !{'x' * 10_000} b", "the tag !xxx"),
    "a list as a key": ("? [a]\n: 1", "line 1, column 3: a key is a list; it must be a word"),
    "an alias of a list as a key": ("a: &a [1]\n*a : 2", "a key is a list; it must be a word"),
    "no key": ("?\n: 1", "a key is empty; it must be a word"),
    "null as a key": ("~: 1", "a key is empty; it must be a word"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' is given twice"),
    "1 and 1.0": ("1: a\n1.0: b", "key '1.0' is given twice"),
    "1 and true": ("1: a\ntrue: b", "key 'true' is given twice"),
    "a quoted key twice": ("007: a\n'007': b", "key '007' is given twice"),
    "a merge twice": ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "key '<<' is given twice"),
    "a merge of a word": ("a: {<<: b}", "'<<' takes a mapping, or a list of mappings"),
    "a merge of words": ("a: {<<: [{b: 1}, c]}", "'<<' takes a mapping, or a list of mappings"),
    "a bare brace": ("{", "while parsing a flow node"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents(name: str) -> None:
    text, message = HOSTILE[name]
    assert message in refusal(text)


@pytest.mark.parametrize(
    "text",
    ["1" * 5000, "0x" + "f" * 5000, "1:" * 5000 + "1", "1:" * 5000 + "1.5", "0b" + "1" * 5000, "1" * 400 + "e1"],
    ids=lambda text: text[:6],
)
def test_endless_numbers_are_texts(text: str) -> None:
    """A path may be such a text, and no field of numbers takes it."""
    assert plain(read(f"a: {text}", "")) == {"a": text}


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "\ufeff"])
def test_documents_that_hold_nothing(text: str) -> None:
    assert plain(load(text)) is None


def data(text: str) -> Any:
    return plain(load(text))


def test_merge_keys() -> None:
    """A mapping, a list of mappings; explicit keys win, of a list the first, and merged keys come before the others."""
    base = "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\n"
    assert data(f"{base}x: {{<<: *base, b: 9}}")["x"] == {"a": 1, "b": 9}
    assert data(f"{base}x: {{b: 9, <<: *base}}")["x"] == {"a": 1, "b": 9}
    assert data(f"{base}x: {{<<: [*base, *more], d: 5}}")["x"] == {"a": 1, "b": 2, "c": 4, "d": 5}
    assert data(f"{base}x: {{<<: [*more, *base]}}")["x"] == {"a": 1, "b": 3, "c": 4}
    assert data(f"{base}x: &x {{<<: *base, d: 5}}\ny: {{<<: *x, a: 0}}")["y"] == {"a": 0, "b": 2, "d": 5}
    assert data("x: {<<: {1: a}, 01: b}")["x"] == {1: "b"}
    assert list(data("t: &t {0: 0.1, 30: 0.01}\nx: {<<: *t, 60: 0.001, 0: 0.2}")["x"].items()) == [
        *[(0, 0.2), (30, 0.01), (60, 0.001)]
    ]
    assert data("x: {'<<': 1}") == {"x": {"<<": 1}}
    assert data("x: <<") == {"x": "<<"}
    deep = "a: {b: &b {<<: {x: 1}, x: 2}}\nc: {<<: *b}"  # Merged before it is read itself.
    assert data(deep) == {"a": {"b": {"x": 2}}, "c": {"x": 2}}


def test_what_else_yaml_has() -> None:
    assert data("a: &a {x: [1]}\nb: *a\n") == {"a": {"x": [1]}, "b": {"x": [1]}}
    assert data("a: &a k\n*a : 1") == {"a": "k", "k": 1}
    assert data("&k key: 1\nb: *k") == {"key": 1, "b": "key"}
    assert data("a: !!str 7\nb: !!int '7'\nc: !!float 7\nd: !!null x") == {"a": "7", "b": 7, "c": 7.0, "d": None}
    assert data("%YAML 1.1\n---\na: 1\n...\n") == {"a": 1}
    assert data("\ufeffa: 1") == {"a": 1}
    assert data('{"a": [1, 2.5, "b", true, null]}') == {"a": [1, 2.5, "b", True, None]}


def test_a_run_with_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {name: mnist_mlp}\nsparsity: {fc: 0.9}\nmethod: {name: static}\ndata: {name: digits}\n"
        "train:\n  optimizer: {<<: {name: sgd, momentum: 0.5}, weight_decay: 0.0}\n"
    )
    loaded = config.load(path)
    assert (loaded.train.optimizer.name, loaded.train.optimizer.weight_decay) == ("sgd", 0.0)
    assert loaded.train.optimizer.model_dump()["momentum"] == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfea\0:\0 \x001\0", "it is not UTF-8 text"),
        ("a: 1".encode("utf-16"), "it is not UTF-8 text"),
        (b"a: \xff", "it is not UTF-8 text"),
        (b"#" * (MOST_BYTES + 1), "has 262,145 bytes, more than 262,144"),
    ],
    ids=["UTF-16", "UTF-16 with a mark", "Latin-1", "large"],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_file(path, "--config", "configs/")
    assert message in str(caught.value)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "is a pipe, not a file"), (Path("/dev/zero"), "is a device, not a file")):
        with pytest.raises(UserError, match=message):
            read_file(path, "--config", "configs/")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(UserError, match=r"has 5,368,709,120 bytes"):
        read_file(tmp_path / "sparse", "--config", "configs/")


LARGEST = {
    "a list": "a: [" + "1, " * 58_000 + "1]",
    "keys": "".join(f"{n}: 1\n" for n in range(22_000)),
    "aliases": "a: &a [" + "1," * 5_000 + "]\nb: [" + "*a, " * 10 + "]",
    "merged": "a: &a {" + ",".join(f"{n}: 1" for n in range(2_000)) + "}\nb: {<<: [" + "*a, " * 9 + "]}",
}
"""Documents as large as allowed, or nearly."""

CHILD = """
import json, sys
from dynsparse.config.documents import DocumentError, load
from tests.memory import peak
before = peak()
hostile, largest = json.load(sys.stdin)
for text in hostile:
    try:
        load(text)
        sys.exit(1)
    except DocumentError:
        pass
for text in largest:
    load(text)
print(peak() - before)
"""


@pytest.mark.slow
def test_what_hostile_documents_take() -> None:
    """All of them, and the largest that are none. In a child that is killed after a minute of computing."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([[text for text, _ in HOSTILE.values()], list(LARGEST.values())]),
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
    )
    assert int(done.stdout) < 500, "MiB"
