"""A forked program ends as one that is started, and has nothing left to import."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.forks import CONTEXT
from tests.training import runs

SCRIPTS = {
    "to its end": "print('done')",
    "at exit": "import atexit; atexit.register(print, 'last'); print('first')",
    "with a code": "import sys; sys.exit(75)",
    "with words": "import sys; sys.exit('what is wrong')",
    "with an error": "1 / 0",
    "interrupted": "raise KeyboardInterrupt",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "at once": "import os; os._exit(4)",
    "by SIGTERM": "import os, signal; os.kill(os.getpid(), signal.SIGTERM); signal.pause()",
    "alone in its session": "import os; print(os.getsid(0) == os.getpid(), os.environ.get('PYTEST_CURRENT_TEST'))",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_fork_ends_as_a_start(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    script = tmp_path / "script.py"
    script.write_text(SCRIPTS[name])
    forked = runs.python(script)
    started = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, start_new_session=True
    )
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def modules(pipe: Connection) -> None:
    pipe.send(({"torch._dynamo", "dynsparse.training.trainer", "nvidia.dali.fn"} - {*sys.modules}, os.getpid()))


def test_a_fork_has_nothing_left_to_import() -> None:
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=modules, args=(theirs,))
    process.start()
    assert ours.recv() == (set(), process.pid)
    process.join()
