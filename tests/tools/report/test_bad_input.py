"""Bad input ends in one line that says what to do, and leaves nothing behind."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dynsparse.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert main(["report", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()


def test_no_runs(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that is wrong is said at once."""
    (tmp_path / "empty").mkdir()
    lines = refused(capsys, tmp_path / "missing", tmp_path / "empty", made, made / "static" / "metrics.jsonl")
    inside = f"{made}/dead, {made}/resumed, {made}/static"
    assert lines == [
        f"error: {tmp_path}/missing: does not exist; name a run's folder, such as runs/digits_dsr",
        f"error: {tmp_path}/empty: is no run, it has no metrics.jsonl and no config.yaml; name a folder of runs/",
        f"error: {made}: is no run, it has no metrics.jsonl and no config.yaml; runs in it are {inside}",
        f"error: {made}/static/metrics.jsonl: is a file; name the run's folder, such as {made}/static",
    ]


def test_a_run_twice(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = made / "static" / ".." / "static"
    assert refused(capsys, made / "static", twice) == [
        f"error: {twice}: the same run as {made}/static; name each run once"
    ]


def test_what_may_not_be_looked_up(
    made: Path, locked: Path, as_another: Callable[[], AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = Path(shutil.copytree(made / "static", locked.parents[1] / "run")), locked / "a.html"
    with as_another():
        assert refused(capsys, run, "--out", out) == [
            f"error: --out: {out} cannot be looked up (Permission denied); name another place"
        ]
        assert refused(capsys, locked) == [
            f"error: {locked}: cannot be read (Permission denied); allow it, or copy the run"
        ]


def test_the_command_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    see = "see python -m dynsparse report --help"
    assert refused(capsys) == [f"error: the following arguments are required: RUN; {see}"]
    assert refused(capsys, made / "static", "--o\nther") == [rf"error: unrecognized arguments: --o\nther; {see}"]
    assert refused(capsys, "") == ["error: RUN is empty; name a run's folder, such as runs/digits_dsr"]
    assert refused(capsys, "a\nb") == [r"error: a\nb: does not exist; name a run's folder, such as runs/digits_dsr"]
    (circle := tmp_path / "circle").symlink_to(circle)
    assert refused(capsys, circle) == [f"error: {circle}: does not exist; name a run's folder, such as runs/digits_dsr"]


def test_no_metrics_yet(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = f"error: {copy}: no epoch or reallocation is in its metrics.jsonl yet"
    (copy / "metrics.jsonl").write_text('{"kind"')
    assert refused(capsys, copy) == [f"{nothing}; wait for the first"]
    (copy / "metrics.jsonl").write_text("x\n" * 7)
    damaged = "metrics.jsonl: lines 1, 2, 3, 4, 5 and 2 more are damaged and skipped"
    assert refused(capsys, copy) == [f"{nothing}; {damaged}; wait for the first"]
    (copy / "metrics.jsonl").unlink()
    assert refused(capsys, copy) == [f"{nothing}; wait for the first"]
    assert not (copy / "report.html").exists()


def test_out(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made / "static"
    before = (run / "metrics.jsonl").read_bytes()
    (folder := tmp_path / "folder.html").mkdir()
    for out, line in (
        (run / "metrics.jsonl", "does not end in .html; give the page's file, such as report.html"),
        (folder, f"is a folder; give a file in it, such as {folder}/report.html"),
    ):
        assert refused(capsys, run, "--out", out) == [f"error: --out: {out} {line}"]
    missing = tmp_path / "no"
    line = f"error: --out: {missing} is no folder; make it first, or name another"
    assert refused(capsys, run, "--out", missing / "x.html") == [line]
    assert (run / "metrics.jsonl").read_bytes() == before


def test_out_cannot_be_written(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc takes no files, of root neither."""
    (line,) = refused(capsys, made / "static", "--out", "/proc/report.html")
    assert line.startswith("error: /proc/report.html: cannot be written (")
    assert line.endswith("; name another place with --out")


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_library_is_missing(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # As if it were not installed.
    (line,) = refused(capsys, made / "static")
    assert line.startswith(f"error: the report needs {library}, which ")
    assert line.endswith("pip install --constraint constraints.txt '.[report]'")
