"""Trains one job as the command line does, and stops with a checkpoint if the table's process is gone.

python -m benchmarks.parts.reproduce.child CONFIG       (beside the run's folder, and with its name)
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main() -> None:
    table = int(os.environ["DYNSPARSE_TABLE_PROCESS"])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != table:
        sys.exit("the process that makes the table is gone")
    from benchmarks.parts.reproduce import starts  # Only here: they import torch.
    from dynsparse.cli.main import train

    starts.note(Path(sys.argv[1]).with_suffix(""))
    train(["--config", sys.argv[1], "--resume", "auto", "log.progress=none"], "dynsparse train")


if __name__ == "__main__":
    main()
