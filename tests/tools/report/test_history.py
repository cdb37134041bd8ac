"""Sessions, from what training writes at starts and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynsparse.tools.report.history import History, read_history


def start(step: int, *, resumed: bool = True, workers: int = 1) -> dict[str, Any]:
    return {"kind": "start", "time": "t", "step": step, "epoch": 0, "resumed": resumed, "world_size": workers}


def end(step: int, status: str) -> dict[str, Any]:
    return {"kind": "end", "time": "t", "step": step, "epoch": 0, "status": status}


def history(folder: Path, *records: Any) -> History:
    text = "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)
    (folder / "history.jsonl").write_text(text)
    found = read_history(folder / "history.jsonl")
    assert found is not None
    return found


def test_by_hand(tmp_path: Path) -> None:
    """Stopped at 10, gone on; ended by an error at 30, gone on from 25 with two workers; died; going on."""
    found = history(
        tmp_path,
        start(0, resumed=False),
        end(10, "stopped"),
        start(10),
        end(30, "failed"),
        start(25, workers=2),
        start(28, workers=2),
    )
    assert [session.died for session in found.sessions] == [False, False, True, False]
    assert [session.lost_steps for session in found.sessions] == [0, 0, 5, 0]
    assert (found.resumes, found.deaths, found.lost_steps, found.world_sizes) == (3, 1, 5, [1, 2])


def test_how_far_a_session_came_that_died(tmp_path: Path) -> None:
    """The next start tells the last step of metrics.jsonl, which it is about to cut."""
    found = history(tmp_path, start(0, resumed=False), start(25) | {"reached": 40}, start(25) | {"reached": None})
    assert [session.lost_steps for session in found.sessions] == [0, 15, 0]


def test_steps_of_another_run_in_the_folder_are_not_lost(tmp_path: Path) -> None:
    assert history(tmp_path, start(0, resumed=False), end(50, "done"), start(0, resumed=False)).lost_steps == 0


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    bad = [{"kind": "start"}, "{", [], {"kind": "other"}, start(3) | {"resumed": None}]
    bad += [start(3) | {"time": None}, end(3, "done") | {"time": 7}, start(3) | {"world_size": True}]
    bad += [start(3) | {"step": -1}, start(10**400), start(3) | {"reached": "4"}]
    found = history(tmp_path, start(0, resumed=False), *bad, end(3, "done"))
    assert (found.damaged.first, found.damaged.count) == ([2, 3, 4, 5, 6], len(bad))
    assert len(found.sessions) == 1
    assert found.sessions[0].end == end(3, "done")


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    history(tmp_path, start(0, resumed=False))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"kind": "en')
    found = read_history(tmp_path / "history.jsonl")
    assert found is not None
    assert (len(found.sessions), found.damaged.count) == (1, 0)


def test_runs_of_before_have_none(tmp_path: Path) -> None:
    assert read_history(tmp_path / "history.jsonl") is None


def test_of_a_run_that_was_killed_and_resumed(made: Path) -> None:
    found = read_history(made / "resumed" / "history.jsonl")
    assert found is not None
    assert (found.deaths, found.resumes) == (1, 1)
    first, second = found.sessions
    assert (first.began_at, first.died, first.end) == (0, True, None)
    assert f"step-{second.began_at:09}.pt" in second.start["from"]
    assert found.sessions[1].end is not None
    assert (found.sessions[1].end["status"], found.sessions[1].end["step"]) == ("done", 24)
