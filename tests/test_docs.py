"""What the documentation says is true."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.methods.test_contract import Run, assert_zero_outside

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_method_of_the_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that docs/adding-a-method.md shows is a method that keeps the contract."""
    page = (ROOT / "docs/adding-a-method.md").read_text()
    source = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    module: Any = types.ModuleType("by_gradient")
    monkeypatch.setitem(sys.modules, "by_gradient", module)
    exec(compile(source, "by_gradient.py", "exec"), module.__dict__)
    method = module.ByGradientSettings(name="by_gradient", period={0: 2}).build()
    monkeypatch.setattr("tests.methods.test_contract.method_named", lambda name: method)
    run = Run("by_gradient", granularity=4, sparsity=0.8, optimizer="sgd")
    for step in range(1, 9):
        run.step(step)
        run.masks.check()
        assert_zero_outside(run)
    assert run.events == 4
    assert run.masks.active_weights == run.masks.budget


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    """Every path in backquotes below one of the rooms."""
    rooms = "dynsparse|pipelines|launch|configs|tests|benchmarks|docs"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]*)`", page.read_text()):
        if "by_gradient" not in name:
            assert (ROOT / name).exists(), name
