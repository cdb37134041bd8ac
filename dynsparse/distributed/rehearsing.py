"""One rank of many, with the others absent: torch's fake process group, whose calls are counted and given a meaning.

All ranks of a run hold the same weights, masks and plans. So one process goes through a run's steps as one of many
would: the same calls with the same sizes. What differs between ranks it does not show: gradients are those of its own
samples.

torch's group sends nothing, and leaves most results as they were. A mode of torch's dispatcher sees each call, those of
DDP's C++ too, as torch's own CommDebugMode does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.futures import Future
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - it registers the backend
from torch.utils._python_dispatch import TorchDispatchMode

from dynsparse.errors import UserError

_FAKE = "fake"
_GATHERS = {"allgather_": "all_gather", "gather_": "gather"}
_CALLS = {"allreduce_": "all_reduce", "broadcast_": "broadcast", "send": "send", "barrier": "barrier", **_GATHERS}
"""Names in `torch.distributed` of the operators by which a rank hands something over."""


class Sent(NamedTuple):
    """A call by which this rank handed something over."""

    call: str
    bytes: int


class LoneRank(TorchDispatchMode):
    """Calls of a rank whose others are not there: it hears from them what it says itself.

    A sum is taken as if every rank had given the same, a gathered list has this rank's value in all places, and a
    message that is received has the lowest number in all places, so that the larger one of two stays.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.world_size = world_size
        self.sent: list[Sent] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return self._meant(func.overloadpacket.__name__, args, result) if func.namespace == "c10d" else result

    def _meant(self, name: str, args: Any, result: Any) -> Any:
        """Count a call, and return its result with what the fake group leaves open."""
        if name == "recv_":
            _fill_with_lowest(args[0])
            return result
        if name not in _CALLS:
            raise UserError(
                f"--rehearse does not know the call {name.strip('_')}, which this run makes between workers"
            )
        tensors = [] if name == "barrier" else args[name in _GATHERS]
        self.sent.append(Sent(_CALLS[name], sum(tensor.nbytes for tensor in tensors)))
        if name == "gather_":
            for places, tensor in zip(args[0], tensors, strict=True):
                for place in places:
                    place.copy_(tensor)
        if name != "allreduce_":
            return result
        assert args[2].op() == dist.ReduceOp.RedOpType.SUM.value, "no other result is defined"  # type: ignore[attr-defined]
        for tensor in tensors:
            tensor.mul_(self.world_size)
        return tensors, _done(tensors)


def _fill_with_lowest(tensors: Sequence[Tensor]) -> None:
    """Fill tensors with the lowest number, which changes nothing where the largest is sought."""
    for tensor in tensors:
        tensor.fill_((torch.finfo if tensor.is_floating_point() else torch.iinfo)(tensor.dtype).min)


def _done(tensors: list[Tensor]) -> Any:
    """Return work that is done, with a result: DDP reads that, and the fake group's has none."""
    future: Future[list[Tensor]] = Future()
    future.set_result(tensors)
    return torch._C._distributed_c10d._create_work_from_future(future).boxed()  # type: ignore[attr-defined]


@contextmanager
def lone_rank(world_size: int) -> Iterator[LoneRank]:
    """Be rank 0 of so many for the time of the block."""
    dist.init_process_group(_FAKE, store=HashStore(), rank=0, world_size=world_size)
    try:
        with LoneRank(world_size) as calls:
            yield calls
    finally:
        dist.destroy_process_group()
