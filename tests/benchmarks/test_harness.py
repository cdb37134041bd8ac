"""The code that all benchmarks share."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.harness import record, script
from benchmarks.harness.page import fill_marks, filled, spread
from benchmarks.harness.processes import watched
from benchmarks.harness.rounds import in_rounds, ratios, returned
from dynsparse.errors import UserError

SPREAD = {"median": 2.0, "low": 1.5, "high": 2.5, "min": 1.0, "max": 3.0}


def test_a_command_is_watched_with_its_children(tmp_path: Path) -> None:
    """A child computes for a while and holds 64 MiB for a moment: both count, and what it says is kept."""
    child = "import time; b'x' * 2**26\nwhile time.process_time() < 0.3: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done'); sys.exit(3)"
    ended = watched([sys.executable, "-c", code], tmp_path / "log")
    assert (ended.code, ended.said) == (3, "done\n")
    assert ended.mb > 64
    assert 0.25 < ended.cpu <= ended.seconds * 2


def test_parts_are_filled_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    assert fill_marks(page, {"a": lambda: r"\1 new"}) == "before\n<!-- a -->\n\\1 new\n<!-- /a -->\nafter\n"
    with pytest.raises(AssertionError, match="no one place for the part 'b'"):
        fill_marks(page, {"b": str})


def test_a_spread_is_written_with_its_extremes() -> None:
    assert spread(SPREAD, 1) == "2.0 (1.0 to 3.0)"
    assert spread(SPREAD, 0, 100) == "200 (100 to 300)"


def test_a_text_with_a_value_that_is_missing_is_no_page() -> None:
    with pytest.raises(Exception, match="'command' is undefined"):
        filled("made", {})


def test_ways_that_measure_themselves_are_compared_within_rounds() -> None:
    times = in_rounds({"a": iter([1, 2.0, 4.0]).__next__, "b": iter([1, 1.0, 8.0]).__next__}, 2, measure=returned)
    assert times == {"a": [2.0, 4.0], "b": [1.0, 8.0]}, "the first warms up"
    assert ratios(times, "b")["a"]["max"] == 2
    assert in_rounds({"a": lambda: 1}, 9, warm_up=0, measure=returned, ends=0.0) == {"a": [1, 1, 1]}, "late: but a few"


def test_bad_input_ends_a_script_in_lines() -> None:
    with pytest.raises(SystemExit, match=r"^error: one\nerror: two$"), script.told():
        raise UserError("one", "two")


@pytest.mark.parametrize("module", ["benchmarks.gpu", "benchmarks.passes", "benchmarks.pipelines"])
def test_a_page_of_nothing_is_an_error_of_one_line(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--page", "--output", str(tmp_path)])
    name = module.rpartition(".")[2]
    with pytest.raises(SystemExit, match=rf"^error: {tmp_path}/{name}\.json: nothing is kept yet; measure first"):
        import_module(module).main()


@pytest.mark.parametrize("rounds", ["0", "-1", "x"])
def test_rounds_are_at_least_1(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.page_parser(None, rounds=3).parse_args(["--rounds", rounds])
    assert f"argument --rounds: is '{rounds}'; it must be a whole number of at least 1" in capsys.readouterr().err


def test_a_commit_is_dirty_by_its_code_not_by_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.commit(tmp_path) is None, "not a repository"

    def git(*arguments: str) -> None:
        as_someone = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *as_someone, *arguments], check=True, capture_output=True)

    for name in ("benchmarks/results/a.json", "docs/results/a.md", "code.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "First")
    clean = record.commit(tmp_path)
    assert clean is not None and len(clean) >= 7
    for name in ("benchmarks/results/a.json", "docs/results/a.md"):
        (tmp_path / name).write_text("after")
    assert record.commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("after")
    assert record.commit(tmp_path) == f"{clean}-dirty"
