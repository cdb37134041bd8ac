"""Configs that ship with the package are found from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynsparse.cli.experiments.jobs import read_jobs
from dynsparse.cli.paper.schedule_files import read_tables
from dynsparse.config import loading, shipped
from dynsparse.errors import UserError


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_config_is_found_and_it_is_said(elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    config = loading.load("configs/digits_dsr.yaml")
    assert config == loading.load(shipped.FOLDER / "digits_dsr.yaml")
    (line,) = caplog.messages
    assert line == (
        "configs/digits_dsr.yaml: not here; the one that ships with dynsparse is used, "
        f"{shipped.FOLDER / 'digits_dsr.yaml'}"
    )


def test_a_file_that_is_here_wins(elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    text = (shipped.FOLDER / "digits_dsr.yaml").read_text()
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs/digits_dsr.yaml").write_text(f"{text}\nseed: 77\n".replace("\nseed: 0", ""))
    assert loading.load("configs/digits_dsr.yaml").seed == 77
    assert caplog.messages == []


def test_schedules_and_lists_are_found_too(elsewhere: Path) -> None:
    assert read_tables("wrnet_schedule.yaml") == read_tables("configs/schedules/wrnet_schedule.yaml")
    assert len(read_jobs("configs/experiments/wrnet.yaml")) == 83


@pytest.mark.parametrize("name", ["configs/none.yaml", "other/digits_dsr.yaml", "digits_dsr.yaml"])
def test_others_are_refused_by_the_name_given(name: str, elsewhere: Path) -> None:
    with pytest.raises(UserError, match=f"^--config {name}: cannot be read"):
        loading.load(name)
