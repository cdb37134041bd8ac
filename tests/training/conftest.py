from __future__ import annotations

import pytest

from dynsparse.training import waiting


@pytest.fixture(autouse=True)
def _nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that a test takes away comes back where the test says so, or never."""
    monkeypatch.setattr(waiting, "LIMIT_SECONDS", 0.0)
