"""Each script of benchmarks/ runs, tiny, so that none can rot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import digits_methods, mask_gradients, record


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    return record.RESULTS


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


def test_digits_methods(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    run(digits_methods, monkeypatch, "--seeds", "2", "--epochs", "2", "--sparsity", "0.9")
    content = json.loads((results / "digits_methods_0.9.json").read_text())
    assert [len(content["methods"][name]["runs"]) for name in digits_methods.METHODS] == [2, 2, 2]
    assert content["methods"]["dsr"]["runs"][0]["sparsity"] == pytest.approx(0.9)
    assert content["versions"]["torch"]
    assert content["machine"]["cores"] > 0
    assert "dsr - static" in capsys.readouterr().out


def test_mask_gradients(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(mask_gradients, monkeypatch, "--weights", "10000", "--repeats", "3")
    content = json.loads((results / "mask_gradients.json").read_text())
    assert len(content["results"]) == 4 * len(mask_gradients.DENSITIES)
