"""Standard output and error that are closed, full, without a reader, or a terminal that is gone: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import runs

LOST = "warning: standard output cannot be written ({}); training continues without it"
FULL, CLOSED, GONE, UNREAD = "No space left on device", "Bad file descriptor", "Input/output error", "Broken pipe"


def shell(redirected: str, *command: object) -> tuple[int, str]:
    """The exit code and stderr of a command with its streams redirected."""
    script = f'("$@") {redirected}'
    words = ["bash", "-o", "pipefail", "-c", script, "bash", *map(str, command)]
    done = subprocess.run(words, cwd=runs.ROOT, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stderr


def training(folder: Path) -> list[object]:
    settings = runs.config(name="a", runs=str(folder), train={"epochs": 1}, log={"progress": "bar"})
    return [sys.executable, "dist_train.py", "--config", runs.write_config(folder, settings)]


TALKER = """
import logging, sys
from pipelines.common import streams
streams.make_safe()
streams.go_on_without()
with open(sys.argv[1], "w") as opened:
    for _ in range(2000):
        print("a line that is longer than it need be", flush=True)
        logging.warning("once in a while")
    opened.write("whole")
"""


@pytest.mark.parametrize(
    ("redirected", "reason"), [(">/dev/full", FULL), (">&- <&-", CLOSED), ("| true", UNREAD)], ids=lambda text: text
)
def test_what_prints_and_logs_goes_on_with_one_warning(tmp_path: Path, redirected: str, reason: str) -> None:
    code, said = shell(redirected, sys.executable, "-c", TALKER, tmp_path / "opened")
    assert code == 0
    lines = said.splitlines()
    assert lines.count(LOST.format(reason)) == 1
    assert lines.count("WARNING:root:once in a while") == len(lines) - 1 == 2000
    assert (tmp_path / "opened").read_text() == "whole"


def test_training_goes_on_without_its_output(tmp_path: Path) -> None:
    code, said = shell(">/dev/full", *training(tmp_path))
    assert code == 0
    assert said.count("warning: ") == said.count(LOST.format(FULL)) == 1
    assert "Traceback" not in said
    assert runs.summary(tmp_path / "a")["status"] == "done"


@pytest.mark.slow
def test_nobody_to_tell_is_no_error(tmp_path: Path) -> None:
    """Files that are opened later do not get the number of a closed stream: what is printed would go to them."""
    code, _ = shell("2>&- >&- <&-", *training(tmp_path))
    assert code == 0
    assert runs.summary(tmp_path / "a")["status"] == "done"
    assert all(line["kind"] for line in runs.metrics(tmp_path / "a"))


@pytest.mark.slow
def test_a_terminal_that_is_gone(tmp_path: Path) -> None:
    """Close the terminal, as after a lost connection: nohup or a handler has kept the run alive."""
    near, far = os.openpty()
    process = subprocess.Popen(
        list(map(str, training(tmp_path))), cwd=runs.ROOT, stdout=far, stderr=far, start_new_session=True
    )
    os.close(far)
    os.close(near)
    assert process.wait(timeout=200) == 0
    assert runs.summary(tmp_path / "a")["status"] == "done"


DRY_RUN = ("dist_train.py", "--config", "configs/digits_dsr.yaml", "--dry-run")
TOOL = ("-m", "dynsparse", "report", "--help")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "latin-1", "ascii:strict"])
def test_names_that_the_encoding_lacks_are_printed_all_the_same(encoding: str) -> None:
    """A file whose name is no text is printed, and a class in another script."""
    code = "from pipelines.common import streams; streams.make_safe(); print('o\\udcff', '\\u65e5')"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=runs.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\udcff" in done.stdout


@pytest.mark.parametrize(
    ("command", "redirected", "code", "said"),
    [
        pytest.param(
            DRY_RUN, ">/dev/full", 2, f"error: the output cannot be written ({FULL})\n", marks=pytest.mark.slow
        ),
        (TOOL, ">/dev/full", 2, f"error: the output cannot be written ({FULL})\n"),
        (TOOL, ">&-", 2, f"error: the output cannot be written ({CLOSED})\n"),
        (TOOL, "| true", 0, ""),
        (TOOL, ">/dev/full 2>&-", 2, ""),
    ],
)
def test_output_that_was_asked_for(command: tuple[str, ...], redirected: str, code: int, said: str) -> None:
    assert shell(redirected, sys.executable, *command) == (code, said)
