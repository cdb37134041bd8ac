"""Storage that is full, read-only or gone for a while: the run ends well, and nothing is missing at its end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training import waiting
from dynsparse.training.callbacks import Display, EpochReport, RunReport, StepReport, Summary, standard_observers
from dynsparse.training.checkpoint import CheckpointFolder, checksum, read
from tests.ranks import run_distributed
from tests.training import runs

SECTIONS: dict[str, Any] = {"log": {"every_steps": 1}, "checkpoint": {"every_steps": 3, "keep": 9}}


class Storage:
    """A file system of its own, that can be full, read-only or gone."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.away = place.with_name(f"{place.name} away")
        self.ballast = place / "ballast"
        self.happened = 0

    def mount(self, *arguments: str) -> bool:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0

    def guard(self) -> None:
        """Raise OSError if the storage is gone. A run asks before it writes."""
        if not (self.place / "here").exists():
            raise OSError("the storage is gone")

    def full(self) -> None:
        """Fill the storage but for some bytes, which the next line takes in part."""
        with self.ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def read_only(self) -> None:
        """Wait until no file is open there to be written: threads of a killed process close theirs a little later."""
        latest = time.monotonic() + 30
        while not self.mount("-o", "remount,ro", str(self.place)):
            assert time.monotonic() < latest, "a file stays open there"

    def gone(self) -> None:
        assert self.mount("--move", str(self.place), str(self.away))

    def end(self, what: str) -> None:
        if what == "full":
            self.ballast.unlink()
        elif what == "read_only":
            assert self.mount("-o", "remount,rw", str(self.place))
        else:
            assert self.mount("--move", str(self.away), str(self.place))


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    outer = tmp_path / "outer"
    place = outer / "runs"
    place.mkdir(parents=True)
    made = Storage(place)
    made.away.mkdir()
    # A mount of a private folder can be moved.
    if not (made.mount("--bind", str(outer), str(outer)) and made.mount("--make-private", str(outer))):
        pytest.skip("no right to mount")
    assert made.mount("-t", "tmpfs", "-o", "size=4m", "none", str(place))
    (place / "here").touch()
    yield made
    for mounted in (place, made.away, outer):
        subprocess.run(["umount", "-l", str(mounted)], capture_output=True)  # Though a process was killed there.


class Outage(Display):
    """Takes the storage away at a moment of the run. It comes back at another, or while the run waits at its end."""

    def __init__(self, storage: Storage, what: str, begins: str, ends: str, checkpoints: CheckpointFolder) -> None:
        self.storage, self.what = storage, what
        self.begins, self.ends = begins, ends
        self.checkpoints = checkpoints
        self.is_on = False

    def now(self, moment: str) -> None:
        if moment == self.begins:
            self.checkpoints.wait()
            getattr(self.storage, self.what)()
            self.is_on = True
        elif moment == self.ends and self.is_on:
            self.checkpoints.wait()
            self.storage.end(self.what)
            self.is_on = False
            self.storage.happened += 1

    def on_start(self, run: RunReport) -> None:
        self.now("start")

    def on_step(self, report: StepReport) -> None:
        self.now(f"step {report.step}")

    def on_epoch(self, report: EpochReport) -> None:
        self.now(f"epoch {report.epoch}")

    def on_end(self, summary: Summary) -> None:
        self.now("end")


def train(storage: Storage, what: str, begins: str, ends: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with an outage. Its folder."""
    settings = runs.config(runs=str(storage.place), name="a", **SECTIONS)
    (settings.folder / "checkpoints").mkdir(parents=True)
    checkpoints = CheckpointFolder(settings.folder / "checkpoints", keep=9, guard=storage.guard)
    outage = Outage(storage, what, begins, ends, checkpoints)
    # The storage comes back as the run waits for the third time.
    waits: list[int] = []
    monkeypatch.setattr(waiting, "LIMIT_SECONDS", 1e9)

    def pause() -> None:
        waits.append(0)
        assert len(waits) < 9, "it is waited for what does not come"
        outage.now(f"wait {len(waits)}")

    monkeypatch.setattr(waiting, "pause", pause)
    observers = [outage, *standard_observers(settings)]
    runs.trainer(settings, observers=observers, checkpoints=checkpoints, guard=storage.guard).fit()
    return settings.folder


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, except what depends on the clock."""
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    timed = ("throughput/images_per_second", "reallocation/seconds")
    return {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag not in timed
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = runs.config(runs=str(tmp_path_factory.mktemp("runs")), name="a", **SECTIONS)
    settings.folder.mkdir()
    checkpoints = CheckpointFolder(settings.folder / "checkpoints", keep=9)
    runs.trainer(settings, observers=standard_observers(settings), checkpoints=checkpoints).fit()
    return settings.folder


def content(path: Path) -> str:
    """A checkpoint's, less what depends on the clock and on where the run's folder is."""
    state = read(path)
    state["progress"].pop("seconds")
    state["config"].pop("runs")
    return checksum(state)


MOMENTS = {
    "at the start of an epoch": ("step 9", "step 14"),
    "as the best state is saved": ("epoch 0", "step 10"),
    "over the end of an epoch, to the end of the run": ("step 7", "wait 3"),
    "at the last save": ("epoch 1", "wait 3"),
    "at the end": ("end", "wait 3"),
    "at the start": ("start", "wait 3"),
}


@pytest.mark.parametrize("what", ["full", pytest.param("read_only", marks=pytest.mark.slow), "gone"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_missing_after_an_outage(
    storage: Storage,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    moment: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = train(storage, what, *MOMENTS[moment], monkeypatch)
    assert storage.happened == 1
    assert runs.metrics(folder) == runs.metrics(undisturbed)
    assert scalars(folder) == scalars(undisturbed)
    assert runs.summary(folder)["status"] == "done"
    assert len((folder / "history.jsonl").read_bytes().splitlines()) == 2
    for name in ("latest", "best", "initial"):
        path = f"checkpoints/{name}.pt"
        assert content(folder / path) == content(undisturbed / path), name
    assert not list(folder.glob("**/*.partial"))
    assert caplog.text.count("waiting for up to") == MOMENTS[moment][1].startswith("wait")


@pytest.mark.parametrize("what", ["full", "gone"])
def test_an_outage_that_lasts_ends_the_run_with_a_line_for_each(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 10
            return self.now

    settings = runs.config(runs=str(storage.place), name="a", **SECTIONS)
    (settings.folder / "checkpoints").mkdir(parents=True)
    checkpoints = CheckpointFolder(settings.folder / "checkpoints", keep=9, guard=storage.guard)
    outage = Outage(storage, what, "step 12", "never", checkpoints)
    monkeypatch.setattr(waiting, "LIMIT_SECONDS", 30.0)
    monkeypatch.setattr(waiting, "time", Clock())
    monkeypatch.setattr(waiting, "pause", lambda: None)
    trainer = runs.trainer(
        settings,
        observers=[outage, *standard_observers(settings)],
        checkpoints=checkpoints,
        guard=storage.guard,
    )
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as caught:
        trainer.fit()
    storage.end(what)
    said = [line.split(":")[0] for line in caught.value.lines]
    places = [f"checkpoint {settings.folder}/checkpoints/{name}" for name in ("step-000000016.pt", "best.pt")]
    expected = [*places, "HistoryFile", "MetricsFile", "SummaryFile", "TensorBoard"]
    # On a disk that is full, the last page of a file may have room for some more lines.
    lines = () if what == "gone" else ("HistoryFile", "MetricsFile")
    assert [one for one in said if one not in lines] == [one for one in expected if one not in lines]
    assert set(said) <= set(expected)
    assert caplog.text.count("waiting for up to 30 s") == 1
    assert trainer.progress.epoch == 2


def wait_together(worker: Worker) -> int:
    """Return how often this rank has tried. Rank 0 alone has something to write, and succeeds with the third try."""
    left, tries = [3 if worker.is_main else 0], [0]

    def try_again() -> None:
        tries[0] += 1
        left[0] = max(0, left[0] - 1)

    waiting.PAUSE_SECONDS = 0.0
    waiting.wait_for_storage(lambda: ["a"] * bool(left[0]), try_again)
    return tries[0]


def test_all_ranks_wait_together() -> None:
    assert run_distributed(wait_together, 2) == [3, 3]


BROKEN: dict[str, Callable[[], Exception]] = {
    "closed": lambda: ValueError("I/O operation on closed file"),
    "no reader": lambda: BrokenPipeError(32, "Broken pipe"),
    "full": lambda: OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("style", ["bar", "lines"])
def test_a_stream_that_takes_nothing_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, style: str
) -> None:
    import sys

    class Stream:
        def write(self, text: str) -> int:
            raise BROKEN[how]()

        def flush(self) -> None:
            raise BROKEN[how]()

    shown = {"progress": style, "tensorboard": False, "every_steps": 1}
    settings = runs.config(runs=str(tmp_path), name="a", log=shown)
    settings.folder.mkdir()
    monkeypatch.setattr(sys, "stderr", Stream())
    monkeypatch.setattr(sys, "stdout", Stream())
    assert runs.trainer(settings, observers=standard_observers(settings)).fit().status == "done"
    assert len(runs.metrics(settings.folder)) == 7


@pytest.mark.parametrize(
    "what",
    ["gone", "full", "read_only"],
)
@pytest.mark.slow  # An outage without a restart: above. A restart without an outage: test_faults.py.
def test_a_worker_that_dies_meanwhile_costs_no_more_than_a_restart(storage: Storage, what: str, tmp_path: Path) -> None:
    """The next attempt waits for the storage, and makes no new run where it was."""
    settings = runs.config(runs=str(storage.place), name="a", train={"epochs": 60}, log={"progress": "lines"})
    path = runs.write_config(tmp_path, settings)
    options = ["--standalone", "--nproc-per-node", "1", "--max-restarts", "1"]
    process = runs.start([*runs.TORCHRUN, *options, runs.ROOT / "dist_train.py", "--config", path])
    said: list[str] = []

    def until(words: str) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if words in line:
                return
        raise AssertionError("".join(said))

    try:
        until("epoch 2/60")
        (worker,) = runs.children(process.pid)
        for stopped in (process.pid, worker):
            os.kill(stopped, signal.SIGSTOP)
        if what != "read_only":
            getattr(storage, what)()
        os.kill(worker, signal.SIGKILL)
        while Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        if what == "read_only":  # Not while a file is open there to be written.
            storage.read_only()
        os.kill(process.pid, signal.SIGCONT)
        until("s for it to come back")
        if what == "gone":
            assert not list(storage.place.iterdir()), "nothing is made where the storage was"
        storage.end(what)
        _, rest = process.communicate(timeout=200)
    finally:
        runs.kill(process)
    assert process.returncode == 0, "".join([*said, rest])
    assert "resuming it" in "".join([*said, rest])
    summary = runs.summary(settings.folder)
    assert (summary["status"], summary["epochs"]) == ("done", 60)
    assert [line["epoch"] for line in runs.metrics(settings.folder) if line["kind"] == "epoch"] == list(range(60))
