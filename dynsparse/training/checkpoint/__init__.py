"""Checkpoints: files that are valid or not there, and that know when they are damaged."""

from dynsparse.training.checkpoint.background import InBackground
from dynsparse.training.checkpoint.finding import checkpoint_of, how_chosen, result_of
from dynsparse.training.checkpoint.folder import CheckpointFolder
from dynsparse.training.checkpoint.format import FORMAT, State, checksum, read, write
from dynsparse.training.checkpoint.reading import read_run
from dynsparse.training.checkpoint.renaming import link, set_aside_after
from dynsparse.training.checkpoint.timer import SaveTimer

__all__ = [
    "FORMAT",
    "CheckpointFolder",
    "InBackground",
    "SaveTimer",
    "State",
    "checkpoint_of",
    "checksum",
    "how_chosen",
    "link",
    "read",
    "read_run",
    "result_of",
    "set_aside_after",
    "write",
]
