"""`benchmarks.rehearsals`: its table is that of its JSON, and it runs."""

from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks import rehearsals
from benchmarks.harness.page import fill_marks
from benchmarks.harness.record import kept


def test_the_table_is_that_of_the_json() -> None:
    filled = fill_marks(rehearsals.PAGE, {rehearsals.MARK: lambda: rehearsals.page(kept(rehearsals.NAME))})
    assert rehearsals.PAGE.read_text() == filled


@pytest.mark.slow  # tests/training/test_rehearsal.py rehearses smaller networks.
def test_tiny() -> None:
    found = rehearsals.measure(Namespace(tiny=True))["rehearsals"]
    assert [(one["method"], one["world_size"]) for one in found] == [("dsr", 2), ("dsr", 5), ("rigl", 2), ("rigl", 5)]
    for one in found:
        of_event = one["event"]["all_reduce"]["bytes"]
        assert one["step"]["all_reduce"]["bytes"] == one["gradients"]["active"]
        assert of_event == one["gradients"]["dense" if one["method"] == "rigl" else "active"]
