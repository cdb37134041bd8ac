"""The benchmark of linear layers as CSR matrices."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import csr


def test_csr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case has its figures and its place on the page; the number of threads is as it was."""
    monkeypatch.setattr(sys, "argv", ["csr", "--tiny", "--output", str(tmp_path)])
    before = torch.get_num_threads()
    csr.main()
    assert torch.get_num_threads() == before
    content = json.loads((tmp_path / "csr.json").read_text())
    threads = len({1, os.cpu_count()})
    assert len(content["cases"]) == threads * 4 * 2
    for case in content["cases"]:
        assert 0 <= case["difference"] <= csr.TOLERANCE
        others = case["sparsity"] == csr.OTHERS_AT
        assert set(case["ms"]) == (set(csr.TITLES) if others else {csr.DENSE, csr.OURS})
        assert case["ratio_to_dense"][csr.DENSE]["median"] == 1
    page = (tmp_path / "csr.md").read_text()
    assert page.count("\n| 80 to 30 | 0.95 |") == threads + 1, "a row for each number of threads, and the conclusion"
    assert page.count("\n| 80 to 30, batch ") == threads * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["csr.json", "csr.md"]


def test_a_wrong_product_is_no_figure() -> None:
    one = torch.ones(2, 3)
    assert csr.difference({csr.DENSE: lambda: one, csr.OURS: lambda: one}) == 0
    with pytest.raises(AssertionError):
        csr.difference({csr.DENSE: lambda: one, csr.OURS: lambda: one + 1e-4})
