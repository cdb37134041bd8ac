"""Memory of this process: its peak, and what masks and method keep between steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn, optim

from dynsparse.training.trainer import Trainer


class Meter:
    """The most memory held since it was made, beyond what was held then, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
            self._before = resident("VmRSS")

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return resident("VmHWM") - self._before


def resident(kind: str) -> int:
    """Bytes of this process's physical memory: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def kept_bytes(trainer: Trainer) -> int:
    """Bytes of tensors and arrays that masks, method and reallocator hold, beside the network's own."""
    own = [*trainer.model.parameters(), *trainer.model.buffers()]
    memory = {tensor.untyped_storage().data_ptr() for tensor in own}
    total = 0
    for tensor in tensors_of([trainer.masks, trainer.sparse.method, trainer.sparse.reallocator]):
        storage = tensor.untyped_storage()
        total += storage.nbytes() if storage.data_ptr() not in memory else 0
        memory.add(storage.data_ptr())
    return total


def tensors_of(things: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors, and arrays as such, that objects of the package or containers hold. Not those of modules."""
    seen: set[int] = set()
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (nn.Module, optim.Optimizer)):
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            thing = torch.from_numpy(thing)
        if isinstance(thing, Tensor):
            yield thing
        else:
            waiting += _parts(thing)


def _parts(thing: object) -> list[object]:
    """Values that an object of the package or a container holds."""
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    if type(thing).__module__.startswith("dynsparse."):
        slots = [getattr(thing, name) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name)]
        return [*slots, *vars(thing).values()] if hasattr(thing, "__dict__") else slots
    return []
