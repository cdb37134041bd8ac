"""A clock for tests of what is chosen by time: no test waits, and none depends on the machine."""

from __future__ import annotations

import pytest

from dynsparse.inference import rounds
from tests.inference.small import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock of the test's own in place of the machine's."""
    made = Clock()
    monkeypatch.setattr(rounds, "_now", made)
    return made
