"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Shared machines are slow at times; an example that takes long is no failure.
settings.register_profile("suite", deadline=None, max_examples=40, print_blob=True)
settings.register_profile("soak", deadline=None, max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The suite runs on several processes, and thread counts change the order of sums."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _signals_are_as_before() -> Iterator[None]:
    """A command that runs in this process leaves its handlers, and what a later test forks would act on them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """A server of forks where a test that was collected has use for one."""
    if forks := sys.modules.get("tests.forks"):
        forks.serve()


LONG = ("launch", "examples", "fuzz", "distributed", "benchmarks", "training")
"""Folders with the longest tests, which come first: else one of them runs alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"tests/{name}/": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: min(ranks.get(item.nodeid[: len(key)], len(LONG)) for key in ranks))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # Keywords would have the folder too.
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
