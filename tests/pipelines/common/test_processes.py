"""Starts of processes where temporary files have a long path."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from pipelines.common.errors import EXIT_BAD_INPUT, UserError
from pipelines.common.processes import LONGEST_TMPDIR, clean_processes
from tests.pipelines.pictures import numbered_folder
from tests.training import runs


def test_a_long_path_for_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (LONGEST_TMPDIR, LONGEST_TMPDIR + 1):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (size - 1))
        if size == LONGEST_TMPDIR:
            assert clean_processes().get_start_method() in ("forkserver", "spawn")
        else:
            with pytest.raises(UserError, match=rf"^TMPDIR is /x+, of {size} bytes: .* set TMPDIR to a folder with a"):
                clean_processes()


@pytest.mark.slow
def test_the_longest_path_is_one_that_works(tmp_path: Path) -> None:
    """A scan is told about a byte more, and works with that many."""
    images = numbered_folder(tmp_path / "images", train=3, val=3)
    for size, code in ((LONGEST_TMPDIR, 0), (LONGEST_TMPDIR + 1, EXIT_BAD_INPUT)):
        folder = Path(tempfile.mkdtemp(dir="/tmp"))
        long = folder / ("x" * (size - len(os.fsencode(folder)) - 1))
        long.mkdir()
        try:
            done = runs.python("-m", "pipelines", "scan", images, "--workers", "2", TMPDIR=str(long))
        finally:
            long.rmdir()
            folder.rmdir()
        assert done.returncode == code, done.stderr
        assert ("error: TMPDIR is " in done.stderr) == (code != 0)
