"""Comparison of two trees' runs: configs that parse, and what counts as the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import digests
from benchmarks.harness.record import ROOT
from dynsparse.config import loading


def test_configs_on_photographs_are_valid(tmp_path: Path) -> None:
    for name, text in digests.on_photographs(tmp_path).items():
        config = loading.parse(yaml.safe_load(text), source=name)
        assert (config.name, config.method.name) == (name, name.removeprefix("imagenette_"))


def test_pruning_comes_after_the_dense_run_that_it_starts_from() -> None:
    names = list(digests.of_digits(ROOT, None))
    assert names[0] == digests.DENSE
    assert names[1:] == sorted(path.stem for path in (ROOT / "configs").glob("digits_*.yaml") if path.stem != names[0])


def test_one_bit_is_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    before = {"a on 1": {"mask_digest": "00", "steps": 2}, "b on 1": {"mask_digest": "01", "steps": 2}}
    assert digests.compare(before, before) == 0
    after = {"a on 1": {"mask_digest": "00", "steps": 2}, "b on 1": {"mask_digest": "11", "steps": 2}, "c on 1": {}}
    assert digests.compare(before, after) == 2, "another bit, and a run that was not there"
    assert "1 of 3 runs are the same" in capsys.readouterr().out


def test_a_comparison_is_kept_beside_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests.record, "RESULTS", tmp_path)
    digests.keep({"commit": "1", "runs": {"a on 1": {"steps": 2}}}, {"commit": "2", "runs": {"a on 1": {"steps": 2}}})
    digests.keep({"commit": "1", "runs": {"b on 1": {"steps": 2}}}, {"commit": "2", "runs": {"b on 1": {"steps": 3}}})
    runs = digests.record.kept(digests.NAME)["runs"]
    assert runs["a on 1"] == {"same": True, "before": "1", "after": "2", "facts": {"steps": 2}}
    assert runs["b on 1"]["same"] is False
    assert runs["b on 1"]["facts_before"] == {"steps": 2}
