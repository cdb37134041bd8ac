"""Docstrings say what a thing is or does, from their first word on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAGMENT = re.compile(
    r"(What|Of|By|With|From|As|At|On|For|Where|To|Whose|Which|How|Why|In|Whether it is|The same|Those|That|Such|Not|"
    r"Also|Until|Through|Without|So|And|Or|But|Else|If|Than|Like|Between|Under|Beside|May|Is|Are|Has|Can)\b"
)
FOLDERS = ("dynsparse", "pipelines", "launch", "benchmarks", "tests", "docs", "examples")


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, those under fields and constants among them."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def fragments(source: str) -> list[str]:
    """Each docstring that begins as a fragment does, with its line."""
    found = [(line, text.strip().split("\n")[0]) for line, text in docstrings(ast.parse(source))]
    return [f"{line}: {text}" for line, text in found if FRAGMENT.match(text)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_docstring_is_a_fragment(folder: str) -> None:
    found = {path: fragments(path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert found and {path: lines for path, lines in found.items() if lines} == {}


def test_fragments_are_found() -> None:
    source = '"""Reads."""\nX = 1\n"""Of a run."""\ndef f():\n    """What f gives."""\n'
    assert fragments(source) == ["3: Of a run.", "5: What f gives."]
