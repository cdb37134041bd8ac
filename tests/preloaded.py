"""Imported by the server of tests/forks.py, once, for all that are forked from it."""

from __future__ import annotations

import os

from tests.fuzz.preload import preload

preload("hypothesis", "pytest", "tests.training.runs", "torch.distributed.run")
for _number in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), _number)  # Warnings of ranks, between pytest's dots.
