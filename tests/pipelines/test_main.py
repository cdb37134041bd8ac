"""The program `python -m pipelines`: one verb, one line for an error, and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipelines.__main__ import PROGRAM


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAM.run(["--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m pipelines COMMAND ...\n")
    assert all(f"\n  {verb} " in said for verb in PROGRAM.verbs)
    assert PROGRAM.run([]) == 2


@pytest.mark.parametrize(
    ("verb", "hint"), [("scna", "did you mean 'scan'?"), ("x", "there are prepare, sample_images, scan, shards")]
)
def test_an_unknown_verb(verb: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAM.run([verb]) == 2
    assert capsys.readouterr().err == f"error: unknown command '{verb}'; {hint}; see python -m pipelines --help\n"


@pytest.mark.parametrize("verb", PROGRAM.verbs)
def test_every_verb_helps(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAM.run([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m pipelines {verb} ")


def test_help_that_cannot_be_written_is_an_error() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        command = [sys.executable, "-m", "pipelines", "--help"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(full)
    assert (ended.returncode, ended.stderr) == (2, "error: the output cannot be written (No space left on device)\n")
