"""Methods and models know no ranks, files, clocks or processes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"os", "time", "datetime", "pathlib", "random", "logging", "subprocess", "torch.distributed"}
FILES = sorted([*(ROOT / "dynsparse/methods").glob("*.py"), *(ROOT / "dynsparse/models").glob("*.py")])


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_knows_nothing_of_the_world(path: Path) -> None:
    assert not imported(ast.parse(path.read_text())) & FORBIDDEN


def test_the_test_would_notice() -> None:
    assert "torch.distributed" in imported(ast.parse("import torch\ntorch.distributed.barrier()"))
    assert "torch.distributed" in imported(ast.parse("from torch import distributed"))
