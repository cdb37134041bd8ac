"""A checkpoint's file: written in one step, and validated as it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynsparse import files
from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint.archive import load
from dynsparse.training.checkpoint.deflating import save_deflated
from dynsparse.training.checkpoint.limits import DamagedError

#: 2: explored positions of inactive units only, see `MaskSet.state_dict`; deflated.
FORMAT = 2
_READABLE = (1, 2)

State = dict[str, Any]


def write(path: Path, state: State, before: Callable[[], None] = lambda: None) -> None:
    """Save plain data and CPU tensors so that `path` never holds half a file.

    Written beside, flushed to disk, renamed; `before` the latter is called. Raises OSError (a full disk, a
    vanished folder) with whatever was at `path` untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path, before) as file:
        save_deflated({"format": FORMAT, "sha256": checksum(state), "state": state}, file)


def read(path: Path) -> State:
    """Load a checkpoint onto the CPU. UserError if it is absent, damaged or of another kind.

    Nothing in the file is executed, and it takes no more memory than `archive.load` says.
    """
    try:
        with files.open_regular(path) as file:
            content = load(file)
        state = _state_in(path, content)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path}: does not exist; give a file from a run's checkpoints/ folder") from None
    except IsADirectoryError:
        raise UserError(f"checkpoint {path}: is a folder; give a file in it, or --resume auto") from None
    except OSError as error:
        kind = StorageError if files.may_pass(error) else UserError
        raise kind(f"checkpoint {path}: cannot be read ({error.strerror}); allow it, or copy the run") from None
    except (DamagedError, MemoryError) as error:
        raise UserError(
            f"checkpoint {path}: damaged or no checkpoint ({str(error) or 'takes too much memory'}); use an earlier "
            "one of the run, or another"
        ) from None
    return state


def _state_in(path: Path, content: Any) -> State:
    if not isinstance(content, dict) or not isinstance(content.get("state"), dict) or "sha256" not in content:
        raise UserError(f"checkpoint {path}: not written by dynsparse; give a file from a run's checkpoints/ folder")
    if content.get("format") not in _READABLE:
        raise UserError(
            f"checkpoint {path}: format {content.get('format')!a:.20}, this version reads {_READABLE[0]} to "
            f"{FORMAT}; use the version of dynsparse that wrote it"
        )
    if checksum(content["state"]) != content["sha256"]:
        raise UserError(f"checkpoint {path}: damaged (its checksum differs); use an earlier one")
    state: State = content["state"]
    return state


def checksum(state: Any) -> str:
    """SHA-256 over plain data and tensors: keys, types, shapes, values, in order."""
    digest = hashlib.sha256()
    for piece in _pieces(state):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {list(value.shape)}".encode()
        flat = value.detach().cpu().contiguous().view(-1)
        yield flat.view(torch.uint8).numpy().data if flat.numel() else b""
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key, item in value.items():
            yield repr(key).encode()
            yield from _pieces(item)
    elif isinstance(value, (list, tuple)):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    else:
        yield f"{type(value).__name__} {value!r}".encode()
