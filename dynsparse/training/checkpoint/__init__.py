"""Checkpoints: files that are whole or not there, and that know when they are damaged."""

from dynsparse.training.checkpoint.file import FORMAT, State, checksum, read, write
from dynsparse.training.checkpoint.folder import CheckpointFolder, link, set_aside_after, step_in_name
from dynsparse.training.checkpoint.timing import InBackground, SaveTimer

__all__ = [
    "FORMAT",
    "CheckpointFolder",
    "InBackground",
    "SaveTimer",
    "State",
    "checksum",
    "link",
    "read",
    "set_aside_after",
    "step_in_name",
    "write",
]
