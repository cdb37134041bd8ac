"""Processes and threads of loaders: they end with what they were started for."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import weakref
from pathlib import Path

import pytest

import pipelines
from tests.pipelines.pictures import numbered_folder, settings
from tests.pipelines.streams import LOADERS, request


@pytest.mark.parametrize("how", ["closed", "dropped", "dropped in a cycle"])
def test_processes_end_in_good_order(how: str, tmp_path: Path) -> None:
    """Exit code 0: each heard that it should end. Torch terminates those that did not, after it has waited."""
    folder = numbered_folder(tmp_path / "images", train=48, val=20)
    before = set(multiprocessing.active_children())
    data = pipelines.build(settings(folder, loader="torch", threads=2), request())
    steps = data.train.epoch()
    next(steps)
    processes = set(multiprocessing.active_children()) - before
    assert len(processes) == 2
    if how == "closed":
        data.close()
    elif how == "dropped in a cycle":
        data.train.knot = data  # type: ignore[attr-defined]
    del data, steps
    gc.collect()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize("loader", LOADERS)
def test_a_dropped_feed_waits_for_no_thread(loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python collects it anywhere, also while it starts another thread: waiting there would never end."""
    folder = numbered_folder(tmp_path / "images", train=48, val=20)
    before, waited = set(threading.enumerate()), []
    data = pipelines.build(settings(folder, loader=loader, threads=2), request())
    steps = data.train.epoch()
    next(steps)
    threads = set(threading.enumerate()) - before
    assert threads, "batches are made ahead"
    data.train.knot = data  # type: ignore[attr-defined]
    feed = weakref.ref(data.train._feed)  # type: ignore[attr-defined]
    del data, steps
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", lambda thread, timeout=None: waited.append(thread))
        while feed() is not None:  # A batch that is being made holds it.
            gc.collect()
    assert not waited
    for thread in threads:  # They end by themselves.
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
