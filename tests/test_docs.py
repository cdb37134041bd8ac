"""The statements of the documentation are true."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pipelines
from benchmarks import readme
from dynsparse.config import loading as config
from dynsparse.training.resume import differences
from pipelines.base import Request
from pipelines.common.errors import UserError
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.order import Share
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


def test_the_data_set_of_the_guide_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file that docs/adding-a-dataset.md shows delivers batches, through both loaders."""
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding-a-dataset.md").read_text(), re.DOTALL)
    module: Any = types.ModuleType("pipelines.datasets.flowers")
    monkeypatch.setitem(sys.modules, "pipelines.datasets.flowers", module)
    exec(compile(source, "flowers.py", "exec"), module.__dict__)
    images = np.random.default_rng(0).integers(0, 256, (20, 60, 70, 3), dtype=np.uint8)
    labels = np.arange(20) % 5
    path = tmp_path / "flowers.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:7], test_labels=labels[:7])
    for loader in ("dali", "torch"):
        asked = module.FlowersSettings(name="flowers", path=str(path), loader=loader, validation_samples=5)
        pipelines.check(asked)
        data = pipelines.build(asked, Request(0, 5, Share(), 5, None))
        assert [batch[0].shape for (batch,) in data.train.epoch()] == [(5, *asked.image_shape)] * 3
        assert sum(len(labels) for _, labels in data.test.batches()) == 7
        at = pipelines.position_of(asked, Request(0, 5, Share(), 5, None))
        assert at.steps_per_epoch == data.train.steps_per_epoch == 3
    with pytest.raises(UserError, match="put the file there"):
        pipelines.check(module.FlowersSettings(name="flowers", path="nowhere"))


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
        if "by_gradient" not in name and "flowers" not in name:
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_figures_are_the_measured_ones(page: Path) -> None:
    """`python -m benchmarks.readme` has been run since the JSON changed."""
    assert readme.filled(page) == page.read_text()


def test_the_readmes_page_of_config_is_complete_and_right() -> None:
    """It parses, and has every key of the sections it shows, with its default."""
    of_photographs, whole = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert isinstance(config.parse({**yaml.safe_load(whole), **yaml.safe_load(of_photographs)}).data, ImagenetSettings)
    page = yaml.safe_load(whole)
    shown = config.parse(page)
    least = {"model": {"name": "mnist_mlp"}, "method": {"name": "dsr"}, "data": {"name": "digits"}}
    defaults = config.parse(least).as_dict()

    def keys(value: Any, path: str = "") -> set[str]:
        if not isinstance(value, dict) or any(isinstance(key, int) for key in value):
            return {path}
        return {found for key, item in value.items() for found in keys(item, f"{path}.{key}")}

    assert keys(page) == keys(defaults)
    changed = {"name", "method.period", "train.lr.table"}
    assert {line.split("=")[0] for line in differences(defaults, shown.as_dict())} <= changed
