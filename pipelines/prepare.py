"""The command `python -m pipelines.prepare imagenet | cifar10 | mnist ...`: the same as `dynsparse prepare`."""

from __future__ import annotations

import sys

from pipelines.__main__ import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
