"""Files whose size is not what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.common.errors import UserError
from pipelines.common.files import read_bytes
from pipelines.sources.excluded import Excluded

ENDLESS = Path("/proc/self/pagemap")
needs_proc = pytest.mark.skipif(not ENDLESS.exists(), reason="needs Linux's /proc")


@needs_proc
def test_a_file_that_holds_more_than_it_says_is_refused() -> None:
    assert ENDLESS.stat().st_size == 0
    with pytest.raises(OSError, match="has more than 1,000 bytes"):
        read_bytes(ENDLESS, 1_000)


@needs_proc
def test_a_list_without_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.exclude: /proc/self/pagemap cannot be read \(has more than"):
        Excluded.read(str(ENDLESS))


def test_a_file_of_the_most_bytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1_000))
    assert read_bytes(tmp_path / "x", 1_000) == bytes(1_000)
