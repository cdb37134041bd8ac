"""Deterministic algorithms of torch, the same run on a GPU bit for bit; and exact float32."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dynsparse.errors import UserError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_REPEATABLE = (":4096:8", ":16:8")  # cuBLAS's own words for workspaces that make it repeat itself.


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone in the block, if asked. Enter it before CUDA starts.

    cuBLAS reads its setting once, when it starts. UserError for an operation that has no such algorithm, and for a
    setting of cuBLAS in the environment that would not repeat itself.
    """
    if not asked:
        yield
        return
    _set_workspace()
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # It would choose by the clock.
    try:
        yield
    except RuntimeError as error:
        _explain(error)
        raise
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let GPUs multiply float32 numbers as such in the block, never as TF32, so that two networks can be compared."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def _set_workspace() -> None:
    found = os.environ.setdefault(_WORKSPACE, _REPEATABLE[0])
    if found not in _REPEATABLE:
        raise UserError(
            f"{_WORKSPACE} is '{found}' in the environment, and train.deterministic needs {' or '.join(_REPEATABLE)}: "
            f"unset it"
        )


def _explain(error: RuntimeError) -> None:
    """Raise UserError if the error is that an operation has no deterministic algorithm."""
    name, found, _ = str(error).partition(" does not have a deterministic implementation")
    if found:
        raise UserError(
            f"train.deterministic is on, and {name} has no deterministic algorithm in torch {torch.__version__}: set "
            f"it to false, or take another model"
        ) from error
