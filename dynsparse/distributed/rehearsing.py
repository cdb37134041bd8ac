"""A group of many ranks of which one alone is there: it hears from the others what it says itself.

All ranks of a run hold the same weights, masks and plans. So one process goes through a run's steps as one of many
would: the same calls with the same sizes, counted. What differs between ranks it does not show: gradients are those of
its own samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]
from torch.futures import Future

_NAME = "dynsparse_rehearsal"


class Sent(NamedTuple):
    """A call by which this rank handed something over."""

    call: str
    bytes: int


class LoneRank(dist.ProcessGroup):
    """One rank of a group whose others are not there.

    A sum is taken as if every rank had given the same, a gathered list has this rank's value in all places, and a
    message that is received has the lowest number in all places, so that the larger one of two stays.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)  # type: ignore[call-arg] # Its stub knows the one with a store alone.
        self.world_size = world_size
        self.sent: list[Sent] = []

    def getBackendName(self) -> str:  # noqa: N802
        """Return the name that torch shows."""
        return _NAME

    def _get_backend(self, device: torch.device) -> LoneRank:  # type: ignore[override]
        """Return what carries tensors of any device."""
        return self

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:  # type: ignore[override]
        """Sum tensors, in place."""
        sums = opts is None or opts.reduceOp == dist.ReduceOp.SUM
        for tensor in tensors:
            if sums:
                tensor.mul_(self.world_size)
        return self._done("all_reduce", tensors)

    def broadcast(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:  # type: ignore[override]
        """Take this rank's tensors for those of rank 0."""
        return self._done("broadcast", tensors)

    def allgather(  # type: ignore[override]
        self, outputs: Sequence[Sequence[Tensor]], tensors: Sequence[Tensor], opts: Any = None
    ) -> Any:
        """Fill every rank's place with this rank's tensors."""
        for places, tensor in zip(outputs, tensors, strict=True):
            for place in places:
                place.copy_(tensor)
        return self._done("all_gather", tensors, outputs)

    def gather(  # type: ignore[override]
        self, outputs: Sequence[Sequence[Tensor]], tensors: Sequence[Tensor], opts: Any = None
    ) -> Any:
        """Fill every rank's place on rank 0 with this rank's tensors."""
        for places, tensor in zip(outputs, tensors, strict=False):
            for place in places:
                place.copy_(tensor)
        return self._done("gather", tensors, outputs)

    def send(self, tensors: Sequence[Tensor], to: int, tag: int) -> Any:
        """Send tensors to nobody."""
        return self._done("send", tensors)

    def recv(self, tensors: Sequence[Tensor], source: int, tag: int) -> Any:
        """Fill tensors with the lowest number, which changes nothing where the largest is sought."""
        for tensor in tensors:
            numbers = torch.finfo(tensor.dtype) if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
            tensor.fill_(numbers.min)
        return self._done("", tensors)

    def barrier(self, opts: Any = None) -> Any:
        """Wait for nobody."""
        return self._done("barrier", [])

    def _done(self, call: str, tensors: Sequence[Tensor], result: Any = None) -> Any:
        if call:
            self.sent.append(Sent(call, sum(tensor.numel() * tensor.element_size() for tensor in tensors)))
        future: Future[Any] = Future()
        future.set_result(list(tensors) if result is None else result)
        return torch._C._distributed_c10d._create_work_from_future(future)  # type: ignore[attr-defined]


def _create(store: Store, rank: int, world_size: int, timeout: timedelta) -> LoneRank:
    return LoneRank(rank, world_size)


@contextmanager
def lone_rank(world_size: int) -> Iterator[LoneRank]:
    """Be rank 0 of so many for the time of the block."""
    if _NAME.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(_NAME, _create, devices=["cpu", "cuda"])
    dist.init_process_group(_NAME, store=HashStore(), rank=0, world_size=world_size)
    try:
        group = dist.group.WORLD
        assert isinstance(group, LoneRank)
        yield group
    finally:
        dist.destroy_process_group()
