"""Reading metrics.jsonl, whole, long, damaged, and while it is written."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynsparse.reallocation import ReallocationReport
from dynsparse.tools.report.binned import MOST
from dynsparse.tools.report.metrics import Metrics, read_metrics
from dynsparse.training.callbacks.metrics_file import MetricsFile

LAYERS = ("a", "b")


def write(path: Path, events: int) -> list[ReallocationReport]:
    """Metrics as training writes them: weights go to and fro between two layers of 100,000."""
    chance = random.Random(7)
    writer, done, active = MetricsFile(path), [], [50_000, 10_000]
    for number in range(1, events + 1):
        dropped = [chance.randrange(10), chance.randrange(10)]
        first = chance.randrange(sum(dropped) + 1)
        grown = [first, sum(dropped) - first]
        active = [a - d + g for a, d, g in zip(active, dropped, grown, strict=True)]
        done.append(
            ReallocationReport(
                step=3 * number,
                epoch=0,
                dropped=dict(zip(LAYERS, dropped, strict=True)),
                grown=dict(zip(LAYERS, grown, strict=True)),
                active=dict(zip(LAYERS, active, strict=True)),
                scalars={"threshold": 1 / number},
                explored={"a": 0.5, "b": 0.1},
            )
        )
        writer.on_reallocation(done[-1])
    writer.write()
    return done


@pytest.mark.parametrize("events", [1, MOST, 5 * MOST + 3])
def test_a_long_run_stays_short_and_loses_nothing(tmp_path: Path, events: int) -> None:
    done = write(tmp_path / "metrics.jsonl", events)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    moves = list(metrics.moves)
    assert len(moves) <= MOST
    assert sum(one.events for one in moves) == metrics.moves.added == events
    for index, name in enumerate(LAYERS):
        assert sum(one.dropped[index] for one in moves) == sum(report.dropped[name] for report in done)
        assert sum(one.grown[index] for one in moves) == sum(report.grown[name] for report in done)
    assert metrics.before is not None
    assert metrics.before.tolist() == [50_000, 10_000]
    assert metrics.layers[-1].active.tolist() == list(done[-1].active.values())
    assert moves[-1].scalars == {"threshold": 1 / events}
    assert [one.first_step for one in moves[1:]] == [one.last_step + 3 for one in moves[:-1]]


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 3)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 40):
        path.write_bytes(whole[:cut])
        metrics = read_metrics(path)
        assert (metrics.moves.added, metrics.damaged.count, metrics.unfinished) == (2, 0, True)


GOOD = {"kind": "reallocation", "step": 9, "epoch": 0, "layers": {}}
LAYER = {"dropped": 1, "grown": 1, "active": 5, "explored": 0.5}
WHOLE = GOOD | {"layers": {"a": LAYER, "b": LAYER}}


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"null",
        b"[" * 100_000,
        json.dumps(GOOD | {"step": "9"}).encode(),
        json.dumps(GOOD | {"step": True}).encode(),
        json.dumps(GOOD | {"layers": {"a": {"dropped": 1, "grown": 1, "active": "many", "explored": 0}}}).encode(),
        json.dumps(GOOD | {"layers": {"other": {"dropped": 1, "grown": 1, "active": 5, "explored": 0}}}).encode(),
        json.dumps(GOOD | {"layers": {"a": {"dropped": 1}}}).encode(),
        json.dumps(GOOD | {"layers": None}).encode(),
        json.dumps({"threshold": 10**400} | WHOLE).encode(),
        json.dumps(WHOLE | {"step": 10**400}).encode(),
        json.dumps(WHOLE | {"step": -9}).encode(),
        json.dumps(GOOD | {"layers": {"a": LAYER | {"dropped": None}, "b": LAYER}}).encode(),
        json.dumps(GOOD | {"layers": {"a": LAYER | {"active": 1e300}, "b": LAYER}}).encode(),
        json.dumps({"kind": "epoch", "step": 9, "epoch": 0, "layers": {"a": {"active": 1}}}).encode(),
    ],
    ids=lambda bad: bad[:60].decode(errors="replace"),
)
def test_a_damaged_line_is_named_and_changes_nothing(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 4)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], bad, *lines[2:], b""]))
    metrics = read_metrics(path)
    path.write_bytes(b"\n".join([*lines, b""]))
    expected = read_metrics(path)
    assert metrics.damaged.first == [3]
    assert facts(metrics) == facts(expected)


def test_the_whole_line_is_none_of_these(tmp_path: Path) -> None:
    """The line that other tests damage is right itself."""
    path = tmp_path / "metrics.jsonl"
    write(path, 1)
    with path.open("a") as file:
        file.write(json.dumps(WHOLE) + "\n")
    metrics = read_metrics(path)
    assert (metrics.moves.added, metrics.damaged.count) == (2, 0)


def facts(metrics: Metrics) -> Any:
    moved = [(one.last_step, one.dropped.tolist(), one.grown.tolist()) for one in metrics.moves]
    return metrics.names, moved, [layers.active.tolist() for layers in metrics.layers], metrics.weights


def test_lines_of_kinds_to_come_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 2)
    with path.open("a") as file:
        file.write('{"kind": "something new"}\n')
    metrics = read_metrics(path)
    assert (metrics.moves.added, metrics.damaged.count) == (2, 0)


def test_of_a_real_run(made: Path) -> None:
    metrics = read_metrics(made / "resumed" / "metrics.jsonl")
    summary = json.loads((made / "resumed" / "summary.json").read_text())
    assert metrics.moves.added == summary["reallocations"]
    for index, (name, layer) in enumerate(summary["layers"].items()):
        weights = int(np.prod(layer["shape"]))
        assert metrics.names[index] == name
        assert metrics.weights[name] == weights
        assert metrics.layers[-1].active[index] == layer["active_weights"]
        assert metrics.before is not None
        assert metrics.before[index] == round(weights * (1 - layer["sparsity_before"]))
