#!/usr/bin/env python3
"""Train a sparse network: the same as `dynsparse train`.

torchrun --nproc-per-node 2 dist_train.py --config configs/digits_dsr.yaml train.epochs=20
python dist_train.py --config configs/digits_dsr.yaml          (one worker)
"""

from __future__ import annotations

import sys

from dynsparse.cli.main import train
from pipelines.common import streams

if __name__ == "__main__":
    streams.make_safe()  # Before anything opens a file.
    train(sys.argv[1:], "dist_train.py")
