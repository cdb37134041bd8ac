"""Services that are away, slow or unwilling, and a run that goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from dynsparse.training.callbacks.base import RunReport, Summary
from dynsparse.training.callbacks.tracking import delivery
from dynsparse.training.callbacks.tracking.base import Histogram, Reading, Tracker
from dynsparse.training.callbacks.tracking.delivery import Delivery
from dynsparse.training.callbacks.tracking.observer import Tracking, histograms_of
from tests.training import runs

LONG = 60.0


class AwayError(Exception):
    """The service is away."""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.001)


@pytest.fixture
def blocked() -> Iterator[Callable[[], None]]:
    """A job that ends with the test."""
    ended = Event()
    yield lambda: ended.wait() and None
    ended.set()


def made(most: int = 9) -> Delivery:
    return Delivery("S", lambda readings: None, lambda error: isinstance(error, AwayError), most=most)


def failing(times: int, error: Exception, done: list[int], number: int) -> Callable[[], None]:
    left = [times]

    def job() -> None:
        if left[0]:
            left[0] -= 1
            raise error
        done.append(number)

    return job


def test_jobs_are_done_in_order_however_often_the_service_is_away(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    with caplog.at_level(logging.INFO):
        one = made()
        for number, times in enumerate([3, 0, 2, 0]):
            one.add(failing(times, AwayError("no\nroute"), done, number))
        assert one.finish(LONG) == 0
    assert done == [0, 1, 2, 3]
    assert caplog.text.count("S takes no readings (no route); training goes on, and it tries again") == 2
    assert caplog.text.count("S takes readings again") == 2


def test_a_job_that_is_refused_is_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    one = made()
    for number, times in enumerate([0, 1, 0, 1, 0]):
        one.add(failing(times, ValueError("bad tag"), done, number))
    assert one.finish(LONG) == 2
    assert done == [0, 2, 4]
    assert caplog.text.count("bad tag") == 1


def test_all_is_lost_if_the_beginning_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    one = made()
    one.add(failing(1, ValueError("no such project"), done, 0))
    one.add(failing(0, ValueError(), done, 1))
    assert one.finish(LONG) == 2
    assert done == []
    assert "no such project" in caplog.text
    assert "this run is not shown there" in caplog.text


def test_nobody_waits_longer_than_he_says(blocked: Callable[[], None]) -> None:
    done: list[int] = []
    one = made(most=3)
    one.add(blocked)
    for number in range(5):
        one.add(failing(0, ValueError(), done, number))
    assert one.finish(0.01) == 6, "one that hangs, two that wait, three for which there was no room"
    one.add(failing(0, ValueError(), done, 9))
    assert done == []


def test_readings_that_waited_are_sent_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MOST_AT_ONCE", 3)
    sent: list[list[int]] = []
    tries = iter([AwayError(), ValueError(), None, None, None])

    def send(readings: list[Reading]) -> None:
        if error := next(tries):
            raise error
        sent.append([reading.step for reading in readings])

    one = Delivery("S", send, lambda error: isinstance(error, AwayError), most=99)
    opened = Event()
    one.add(lambda: opened.wait() and None)
    for step in range(7):
        one.add(Reading(step, {}, 0.0))
    one.add(lambda: sent.append([]))
    one.add(Reading(7, {}, 0.0))
    opened.set()
    assert one.finish(LONG) == 3, "the piece that was refused"
    assert sent == [[3, 4, 5], [6], [], [7]]


def test_without_a_job_there_is_nothing_to_wait_for() -> None:
    assert made().finish(LONG) == 0


class Service(Tracker):
    """A service in this process. `fails` is called before everything that it is told."""

    name = "S"
    file = "wandb.json"

    def __init__(self, folder: Path, fails: Callable[[str], object] = lambda what: None) -> None:
        super().__init__(folder, None)
        self.fails = fails
        self.told: list[Any] = []

    def begin(self, run: RunReport, id: str | None) -> str:  # noqa: A002
        self.tell("begin", id)
        return id or "new1"

    def log(self, readings: Sequence[Reading]) -> None:
        for reading in readings:
            self.tell("log", reading.step, dict(reading.values))

    def show(self, tag: str, picture: Tensor) -> None:
        self.tell("show", tag)

    def spread(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        self.tell("spread", step, histograms)

    def end(self, summary: Summary) -> None:
        self.tell("end", summary.status)

    def where(self) -> str:
        return "here"

    def left(self) -> str:
        return "they are gone"

    def may_pass(self, error: Exception) -> bool:
        return isinstance(error, AwayError)

    def tell(self, *what: Any) -> None:
        self.fails(what[0])
        self.told.append(what)


def trained(service: Service, limit: float = LONG) -> str:
    settings = runs.config(runs=str(service.folder.parent), name=service.folder.name, log={"wandb": True})
    service.folder.mkdir(exist_ok=True)
    return runs.trainer(settings, observers=[Tracking(service, limit=limit)]).fit().weight_digest


def test_the_run_is_the_same_whatever_the_service_does(
    tmp_path: Path, blocked: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    plain = runs.trainer(runs.config()).fit().weight_digest

    def refuses(what: str) -> None:
        raise ValueError(what)

    def is_away(what: str) -> None:
        raise AwayError(what)

    well = Service(tmp_path / "well")
    assert trained(well) == plain
    assert [what[0] for what in well.told[:4]] == ["begin", "log", "log", "show"]
    assert well.told[-1] == ("end", "done")
    assert json.loads((tmp_path / "well" / "wandb.json").read_text()) == {"id": "new1"}
    for name, fails in {"unwilling": refuses, "away": is_away, "hangs": lambda what: blocked()}.items():
        caplog.clear()
        service = Service(tmp_path / name, fails)
        assert trained(service, limit=0.01) == plain, name
        assert "readings of this run; the logs in its folder are whole, they are gone" in caplog.text
        assert not (tmp_path / name / "wandb.json").exists()
        assert service.told == []


@pytest.mark.parametrize("content", ['{"id": "known7"}', '{"id": "../x"}', '{"id": 3}', "{", '{"id": ""}', None])
def test_the_id_that_the_folder_keeps_is_continued(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    if content is not None:
        (folder / "wandb.json").write_text(content)
    service = Service(folder)
    trained(service)
    known = "known7" if content == '{"id": "known7"}' else None
    assert service.told[0] == ("begin", known)
    assert json.loads((folder / "wandb.json").read_text()) == {"id": known or "new1"}


def test_histograms_of_weights_that_can_be_drawn() -> None:
    layers = {
        "wild": torch.tensor([0.0, 1.0, 0.5, float("nan"), float("inf"), -3e38]),
        "still": torch.full((5,), 0.25),
        "none": torch.tensor([float("nan")]),
    }
    found = histograms_of(layers)
    assert list(found) == ["active_weights/wild", "active_weights/still"]
    counts, edges = found["active_weights/wild"]
    assert ([at for at, count in enumerate(counts) if count], sum(counts)) == ([0, 32, 63], 3)
    assert (edges[0], edges[32], edges[64]) == (0.0, 0.5, 1.0)
    counts, edges = found["active_weights/still"]
    (at,) = [at for at, count in enumerate(counts) if count]
    assert counts[at] == 5
    assert edges[at] <= 0.25 <= edges[at + 1]
