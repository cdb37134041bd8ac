"""Whatever the logs hold, a resume goes on, and the report shows a page or one line."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynsparse import files
from dynsparse.cli.main import main
from dynsparse.training.callbacks import Observers, standard_observers
from dynsparse.training.callbacks.base import RunReport
from dynsparse.training.callbacks.metrics_file import MetricsFile
from dynsparse.training.run.log_lines import read
from dynsparse.training.run.log_records import metrics_line
from tests.training import runs


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    """A run's folder, and its start; its file tells of steps to 16."""
    settings = runs.config(runs=str(tmp_path_factory.mktemp("runs")), name="a", checkpoint={"every_steps": 4})
    settings.folder.mkdir()
    (settings.folder / "config.yaml").write_text(settings.as_yaml())
    members = standard_observers(settings)
    trainer = runs.trainer(settings, observers=members)
    trainer.fit()
    return settings.folder, trainer.reporter.run_report(resumed=True)


def resumed(run: RunReport, step: int, epoch: int) -> RunReport:
    return RunReport(**{**vars(run), "start_step": step, "start_epoch": epoch})


def resume(path: Path, run: RunReport) -> None:
    """Cut the file as a resume does."""
    metrics = MetricsFile(path)
    metrics.on_start(run)
    metrics.write()


def test_a_resume_with_one_bit_changed_goes_on(
    real: tuple[Path, RunReport], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1,000 times: each line in which there is no such bit is kept, or cut, as it should be."""
    path, run = tmp_path / "metrics.jsonl", resumed(real[1], 12, 1)
    content = (real[0] / "metrics.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 12]
    assert (len(lines), len(kept)) == (7, 5)
    chance, said = random.Random(1), 0
    for _ in range(1000):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        aside = tmp_path / "metrics.jsonl.damaged"
        aside.unlink(missing_ok=True)
        resume(path, run)
        hit = next(number for number in range(len(lines)) if place < sum(map(len, lines[: number + 1])))
        left = path.read_bytes().splitlines(keepends=True)
        assert [line for line in left if line in kept] == [line for line in kept if line != lines[hit]], (place, bit)
        assert len(left) <= len(kept) + 1
        said += aside.exists()
    assert said > 300
    assert caplog.text.count("damaged; moved to metrics.jsonl.damaged") == said


BAD: dict[str, bytes] = {
    "no JSON": b"{\n",
    "NUL": b"\0" * 1000 + b"\n",
    "no UTF-8": b'{"kind": "epoch\xff", "epoch": 0, "step": 1}\n',
    "list": b"[1]\n",
    "other object": b'{"epoch": 1}\n',
    "kind to come": b'{"kind": "other", "step": 3}\n',
    "no step": b'{"kind": "reallocation", "layers": {}}\n',
    "step of text": b'{"kind": "reallocation", "step": "3", "layers": {}}\n',
    "epoch of null": b'{"kind": "epoch", "epoch": null, "step": 3, "layers": {}}\n',
    "deep": b"[" * 100_000 + b"\n",
    "huge number": b'{"kind": "reallocation", "step": 3, "layers": {}, "a": 1' + b"0" * 400 + b"}\n",
    "20 MB": b"x" * 20_000_000 + b"\n",
    "20 MB of NUL": b"\0" * 20_000_000 + b"\n",
}


QUICK = ("no JSON", "no step", "deep", "20 MB of NUL")


@pytest.mark.parametrize("bad", [bad if bad in QUICK else pytest.param(bad, marks=pytest.mark.slow) for bad in BAD])
def test_bad_lines_are_set_aside(
    real: tuple[Path, RunReport], tmp_path: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning tells of them; the lines around them stay. History has them too, and is appended to."""
    folder, run = tmp_path / "a", resumed(real[1], 16, 2)
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    whole = (real[0] / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join([*whole[:3], BAD[bad], *whole[3:], BAD[bad], b'{"half a li']))
    (folder / "history.jsonl").write_bytes(BAD[bad])
    assert main(["report", str(folder)]) == 0
    observers = Observers(standard_observers(runs.config(runs=str(tmp_path), name="a")))
    observers.on_start(run)
    assert observers.failures("start") == []
    assert path.read_bytes() == b"".join(whole)
    assert caplog.text.count("metrics.jsonl: lines 4, 9 are damaged; moved to metrics.jsonl.damaged") == 1
    aside = (folder / "metrics.jsonl.damaged").read_bytes()
    assert aside == BAD[bad] * 2 if len(BAD[bad]) < 1 << 20 else len(aside) <= 1 << 24
    assert json.loads((folder / "history.jsonl").read_bytes().splitlines()[-1])["reached"] == 16


def test_a_file_that_is_cut_stays_the_same_file(real: tuple[Path, RunReport], tmp_path: Path) -> None:
    """Gigabytes are not written anew. Where other names lead to it they keep what they had."""
    path, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    path.write_bytes((real[0] / "metrics.jsonl").read_bytes())
    number = path.stat().st_ino
    resume(path, resumed(real[1], 12, 1))
    assert path.stat().st_ino == number
    os.link(path, other)
    before = other.read_bytes()
    resume(path, resumed(real[1], 3, 0))
    assert other.read_bytes() == before
    assert path.read_bytes() == before.splitlines(keepends=True)[0]


def test_what_is_set_aside_is_bounded(real: tuple[Path, RunReport], tmp_path: Path) -> None:
    """A resume needs memory for a line, not for the file."""
    path = tmp_path / "metrics.jsonl"
    for _ in range(3):
        path.write_bytes(b"x" * 9_999_999 + b"\n")
        resume(path, resumed(real[1], 16, 2))
    assert (tmp_path / "metrics.jsonl.damaged").stat().st_size == 10_000_000
    assert path.read_bytes() == b""


def test_a_line_whose_end_was_damaged_is_found(real: tuple[Path, RunReport], tmp_path: Path) -> None:
    first, second, *_ = (real[0] / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(first[:-1] + b"\x0b" + second)
    found = [(line.number, line.record is not None) for line in read(path, metrics_line)]
    assert found == [(1, False), (1, True)]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


THINGS: dict[str, Callable[[Path, Path], Any]] = {
    "folder": lambda path, target: path.mkdir(),
    "full folder": lambda path, target: (path / "a").mkdir(parents=True),
    "pipe": lambda path, target: os.mkfifo(path),
    "socket": lambda path, target: bind(path),
    "link": lambda path, target: path.symlink_to(target),
    "broken link": lambda path, target: path.symlink_to("none"),
    "link to a device": lambda path, target: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("thing", THINGS)
def test_what_stands_in_place_of_a_log(
    real: tuple[Path, RunReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    thing: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # Addresses of sockets are short.
    folder, target = Path("a"), (tmp_path / "target").absolute()
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    target.write_text("not ours\n")
    names = ("metrics.jsonl", "history.jsonl", "summary.json")
    for name in names:
        THINGS[thing](folder / name, target)
    assert main(["report", "a"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "metrics.jsonl" in said[0]

    settings = runs.config(name="a", runs=str(tmp_path))
    runs.trainer(settings, observers=standard_observers(settings)).fit()
    for name in names:
        assert (folder / name).is_file()
        assert not (folder / name).is_symlink()
        assert f"{name} is a " in caplog.text
    assert runs.metrics(folder) == runs.metrics(real[0])
    assert target.read_text() == "not ours\n"
    assert runs.summary(folder)["status"] == "done"


def test_a_line_may_be_as_long_as_files_are_read(real: tuple[Path, RunReport], tmp_path: Path) -> None:
    """A longer one is a single damaged line, whatever its pieces look like."""
    (line, *_) = (real[0] / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b" " * files.LONGEST_LINE + line + line)
    found = list(read(path, metrics_line))
    assert [(one.number, one.record is not None) for one in found] == [(1, False), (1, False), (2, True)]
