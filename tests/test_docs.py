"""The statements of the documentation are true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynsparse
import pipelines
from benchmarks import readme
from docs import config_reference, layer_tables, method_table
from dynsparse.config import loading, schema
from dynsparse.config.own_file import known_names
from pipelines.base import Request
from pipelines.common.errors import UserError
from pipelines.order import Share
from tests.methods.test_contract import Run, assert_zero_outside

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])


def test_the_method_of_the_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that docs/adding-a-method.md shows is a method that keeps the contract."""
    page = (ROOT / "docs/adding-a-method.md").read_text()
    source = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    module: Any = types.ModuleType("my_rule")
    monkeypatch.setitem(sys.modules, "my_rule", module)
    exec(compile(source, "my_rule.py", "exec"), module.__dict__)
    method = module.MyRuleSettings(period={0: 2}).build()
    monkeypatch.setattr("tests.methods.test_contract.method_named", lambda *_: method)
    run = Run("my_rule", granularity=4, sparsity=0.8, optimizer="sgd")
    for step in range(1, 9):
        run.step(step)
        run.masks.check()
        assert_zero_outside(run)
    assert run.events == 4
    assert run.masks.active_weights == run.masks.budget


def test_the_data_set_of_the_guide_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file that docs/adding-a-dataset.md shows delivers batches, through all loaders."""
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding-a-dataset.md").read_text(), re.DOTALL)
    module: Any = types.ModuleType("pipelines.datasets.flowers")
    monkeypatch.setitem(sys.modules, "pipelines.datasets.flowers", module)
    exec(compile(source, "flowers.py", "exec"), module.__dict__)
    images = np.random.default_rng(0).integers(0, 256, (20, 60, 70, 3), dtype=np.uint8)
    labels = np.arange(20) % 5
    path = tmp_path / "flowers.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:7], test_labels=labels[:7])
    for loader in ("dali", "torch", "resident"):
        asked = module.FlowersSettings(name="flowers", path=str(path), loader=loader, validation_samples=5)
        pipelines.check(asked)
        data = pipelines.build(asked, Request(0, 5, Share(), 5, None))
        assert [batch[0].shape for (batch,) in data.train.epoch()] == [(5, *asked.image_shape)] * 3
        assert sum(len(labels) for _, labels in data.test.batches()) == 7
        at = pipelines.position_of(asked, Request(0, 5, Share(), 5, None))
        assert at.epochs.steps(0) == data.train.epochs.steps(0) == 3
    with pytest.raises(UserError, match="put the file there"):
        pipelines.check(module.FlowersSettings(name="flowers", path="nowhere"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    """Every path in backquotes below one of the packages or folders."""
    folders = "dynsparse|pipelines|launch|configs|tests|benchmarks|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text()):
        if "flowers" not in name:
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_figures_are_the_measured_ones(page: Path) -> None:
    """`python -m benchmarks.readme` has been run since the JSON changed."""
    assert readme.filled(page) == page.read_text()


def test_the_config_reference_is_that_of_the_schema() -> None:
    """`make schema` has been run since the schema changed."""
    page = config_reference.PAGE.read_text()
    assert page == config_reference.page(json.loads(schema.json_schema()))


def test_the_tables_of_layers_are_those_of_the_networks() -> None:
    tables = {name: layer_tables.table(name) for name in layer_tables.NETWORKS}
    assert layer_tables.PAGE.read_text() == layer_tables.page(tables)
    guide = (ROOT / "docs/layers.md").read_text()
    for name, table in tables.items():
        assert f"| `{name}` | {len(table.layers)}: " in guide and f"| {100 * table.model_sparsity:.2f} % |" in guide
    small = [one.weights for one in tables["efficientnet_b0"].dense if "fan-in" in one.reason]
    assert f"{round(sum(small), -3):,} of the 5.3 million" in guide


def test_the_table_of_methods_has_a_row_for_each() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", method_table.PAGE.read_text(), re.MULTILINE)
    assert rows == sorted(known_names())


def test_the_reference_has_each_method_and_all_that_the_library_exports() -> None:
    pages = [(ROOT / "docs/reference" / name).read_text() for name in ("methods.md", "library.md")]
    named = set(re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE))
    assert {type(method_table.configured(name).method).__module__ for name in known_names()} <= named
    assert {f"dynsparse.{name}" for name in dynsparse.__all__} - {"dynsparse.Method", "dynsparse.__version__"} <= named


@pytest.mark.parametrize(
    ("name", "option", "goes"),
    [
        ("rigl", method_table.DRAWS["drop"], True),
        ("rigl", method_table.DRAWS["growth"], True),
        ("dsr", method_table.DRAWS["drop"], False),
        ("set", method_table.DRAWS["growth"], False),
        ("topkast", method_table.DRAWS["drop"], False),
        ("nm", method_table.DENSITY, False),
        ("set", method_table.DENSITY, True),
        ("static", method_table.DENSITY, False),
    ],
)
def test_the_table_says_which_options_go_with_a_method(name: str, option: str, goes: bool) -> None:
    assert method_table.goes_with(name, option) == goes
    (row,) = re.findall(rf"^\| `{name}` \|.*$", method_table.PAGE.read_text(), re.MULTILINE)
    density, draws = re.split(r"(?<!\\)\|", row)[7:9]
    assert (("yes" in density) if option == method_table.DENSITY else (_draw(option) in draws)) == goes


def _draw(option: str) -> str:
    return next(word for word, one in method_table.DRAWS.items() if one == option)


def test_the_readme_has_the_lines_of_rigl() -> None:
    (said,) = re.findall(r"RigL's of (\d+) lines", (ROOT / "README.md").read_text())
    assert int(said) == len((ROOT / "dynsparse/methods/rigl.py").read_text().splitlines())


@pytest.mark.slow  # It runs all methods: a minute.
def test_the_table_of_methods_is_that_of_their_runs() -> None:
    """`make schema` has been run since a method changed."""
    assert method_table.PAGE.read_text() == method_table.page()


def test_the_config_reference_has_every_key() -> None:
    page = config_reference.PAGE.read_text()
    least = {"model": {"name": "mnist_mlp"}, "method": {"name": "dense"}, "data": {"name": "digits"}}
    for section, keys in loading.parse(least).as_dict().items():
        for key in keys if isinstance(keys, dict) else ():
            assert f"`{section}.{key}" in page, (section, key)


def test_the_readme_is_short_and_its_loop_runs() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)
    names["sparse"].check()
    assert names["sparse"].steps == names["epochs"] * len(names["loader"])


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Links, anchors and the reference are right: mkdocs treats a warning as an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not re.search(r"https://(fonts|www\.google|unpkg|cdn)", (tmp_path / "site/index.html").read_text())
