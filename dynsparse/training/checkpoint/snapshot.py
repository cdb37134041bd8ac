"""A state of the run, held in memory until it is written."""

from __future__ import annotations

from dataclasses import dataclass

from dynsparse.training.checkpoint.format import State


@dataclass(frozen=True)
class Snapshot:
    """Content of one save."""

    state: State
    step: int
    number: int
    """Number of the save, from 1: there may be several after one step, of different states."""
