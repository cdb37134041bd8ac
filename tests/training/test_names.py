from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynsparse.training.run import names
from tests.training.runs import ROOT

ENDINGS = (".yaml", ".json", ".jsonl", ".pt")
SPELLED = {name for name in vars(names).values() if isinstance(name, str) and name.endswith(ENDINGS)}
FILES = [path for folder in ("dynsparse", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]


def texts(path: Path) -> Iterator[str]:
    return (
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_no_other_module_spells_the_name_of_a_runs_file() -> None:
    spelled = {path.relative_to(ROOT).as_posix(): SPELLED & set(texts(path)) for path in FILES}
    assert [path for path, found in spelled.items() if found] == ["dynsparse/training/run/names.py"]


@pytest.mark.parametrize(
    ("name", "step"),
    [("step-000000123.pt", 123), ("step-123.pt", None), ("step-000000123.pt.stale", None), ("latest.pt", None)],
)
def test_the_step_in_a_name(name: str, step: int | None) -> None:
    assert names.step_in(Path("checkpoints") / name) == step
    assert step is None or names.of_step(step) == name
