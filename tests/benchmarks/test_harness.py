"""The code that all benchmarks share."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import rigl_neurons
from benchmarks.harness import record, script
from benchmarks.harness.page import fill_marks, filled, named, spread
from benchmarks.harness.processes import watched
from benchmarks.harness.rounds import in_rounds, ratios, returned
from benchmarks.parts.shrinking.training import in_steps
from dynsparse.errors import UserError

SPREAD = {"median": 2.0, "low": 1.5, "high": 2.5, "min": 1.0, "max": 3.0}


def test_a_command_is_watched_with_its_children(tmp_path: Path) -> None:
    """A child computes for a while and holds 64 MiB for a moment: both count, and what it says is kept."""
    child = "import time; b'x' * 2**26\nwhile time.process_time() < 0.3: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done'); sys.exit(3)"
    ended = watched([sys.executable, "-c", code], tmp_path / "log")
    assert (ended.code, ended.said) == (3, "done\n")
    assert ended.mib > 64
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
    (tmp_path / "more.py").write_text("imported, and in no commit")
    assert record.commit(tmp_path) == f"{clean}-dirty"
    (tmp_path / "more.py").unlink()
    (tmp_path / "code.py").write_text("after")
    assert record.commit(tmp_path) == f"{clean}-dirty"


def test_a_page_that_cannot_be_made_replaces_no_kept_figures(tmp_path: Path) -> None:
    def page(content: record.Result) -> str:
        raise ValueError("a mean of nothing")

    record.keep("some", {"figures": 1}, tmp_path)
    with pytest.raises(ValueError, match="a mean of nothing"):
        script.keep("some", {"figures": 0}, page, tmp_path)
    assert record.kept("some", tmp_path)["figures"] == 1


def test_a_part_alone_replaces_no_kept_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert script.keep_whole("some", {}, None, whole=False) == "a part alone: no figures are kept without --output"
    assert not (tmp_path / "some.json").exists()
    assert script.keep_whole("some", {}, None, whole=True) == f"{tmp_path}/some.json"
    assert script.keep_whole("some", {}, tmp_path / "mine", whole=False) == f"{tmp_path}/mine/some.json"


def test_ways_of_other_epochs_are_refused_not_dropped(tmp_path: Path) -> None:
    record.keep("rigl_neurons", {"epochs": 3, "ways": {"rigl": {}}}, tmp_path)
    assert rigl_neurons.kept_ways(tmp_path, 3) == {"rigl": {}}
    with pytest.raises(UserError, match=r"^--epochs is 5; the kept figures are of 3: give another --output$"):
        rigl_neurons.kept_ways(tmp_path, 5)


def test_a_shrink_is_told_in_steps_of_the_epoch_that_it_begins() -> None:
    shrinks = {1: {"seconds": 2.0}, 3: {"seconds": 1.0}}
    assert in_steps(shrinks, [80.0, 40.0, 20.0, 10.0], steps=10) == [0.5, 1.0]


def _commits(content: object) -> set[str]:
    """Return what stands as "commit" anywhere in a JSON."""
    if isinstance(content, list):
        return set().union(*map(_commits, content))
    if not isinstance(content, dict):
        return set()
    found = {value for key, value in content.items() if key == "commit" and isinstance(value, str)}
    return found.union(*map(_commits, content.values()))


def test_each_commit_of_kept_figures_is_in_the_history() -> None:
    git = ["git", "-C", str(record.ROOT)]
    shallow = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if shallow.stdout.strip() != "false":
        pytest.skip("the whole history is not here")
    history = subprocess.run([*git, "log", "--format=%H"], capture_output=True, text=True, check=True).stdout.split()
    rewritten = record.kept("commits")["rewritten"]
    told = set().union(*(_commits(json.loads(path.read_text())) for path in record.RESULTS.glob("*.json")))
    short = {commit for text in told for commit in re.findall(r"\b[0-9a-f]{7,40}\b", text)}
    assert len(short) > 20
    unknown = {commit for commit in short if not any(one.startswith(commit) for one in history)}
    assert unknown == {*rewritten}, "a commit is nowhere, or one that is told as rewritten is there, or named no more"
    assert all(any(one.startswith(first) for one in history) for first in rewritten.values())


def test_a_rewritten_commit_is_told_with_the_one_that_has_its_figures() -> None:
    assert named("05e2535") == "05e2535 (rewritten since; 31ce80d has its figures)"
    assert named("36cd816") == "36cd816"
    assert named(None) == "None"
