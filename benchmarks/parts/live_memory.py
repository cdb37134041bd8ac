"""Memory of tensors, counted exactly, in a process without a GPU that takes a GPU's ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from dynsparse.reallocation import seen


class Live(TorchDispatchMode):
    """Count of the bytes that tensors hold: now, and at most. Memory that several tensors share counts once.

    It sees the results of all operations, and the tensors it is given. Workspaces within a kernel are not seen.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: dict[int, ref[Any]] = {}
        self.now = self.most = 0
        for tensor in known:
            self._add(tensor)
        self.before = self.now

    @property
    def extra(self) -> int:
        """Most bytes beyond what is held at the end, or was before: the larger of both."""
        return self.most - max(self.before, self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                self._add(one)
        return found

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return

        def gone(_: object) -> None:
            del self._held[key]
            self.now -= size

        self._held[key] = ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


class _AsOnGpu(TorchFunctionMode):
    """Tensors that say they were a GPU's. Those without values, of the device meta, are read as zeros."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if func == Tensor.is_cpu.__get__:  # type: ignore[attr-defined]
            return False
        if func == Tensor.tolist and args[0].is_meta:
            return torch.zeros(args[0].shape, dtype=args[0].dtype, device="cpu").tolist()
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Let dynsparse take the ways of a GPU. What it moves to the host's memory is not counted as a GPU's."""
    with _AsOnGpu(), patch.object(seen, "to_host", _uncounted_copy):
        yield


def _uncounted_copy(values: Tensor) -> Tensor:
    with _disable_current_modes():
        return values.clone()
