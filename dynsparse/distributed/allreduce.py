"""All-reduce of the gradients of active weights alone: a communication hook of DistributedDataParallel.

Masks are the same on every rank, so that positions need not be sent. The bytes fall with the density. The result is
that of a dense all-reduce with masking after it.

Example, a gradient [1 2 3 4] with the active positions 0 and 2: the rank packs its values there, [1 3]. The mean over
the ranks is [5 7], say. Unpacked it is [5 0 7 0].
"""

# No `from __future__ import annotations`: DDP compares the hook's annotations with the classes themselves.
from collections.abc import Iterator
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from dynsparse.masks import MaskSet
from dynsparse.masks.rows import by_parameter, memory_of

Gradients = Literal["auto", "active", "dense"]
"""Gradients to send: those of active weights, or all. auto: the faster of both."""


class ActiveAllReduce:
    """Reduction of the gradients of one DDP module to their mean over the ranks.

    With `active`, only gradients of the active weights of `masks` and of dense parameters are sent, and gradients
    outside the masks come back as 0. Without it all are sent, in the layout and order that DDP itself uses: the result
    has the same bits.

    With two ranks the active gradients have the same bits either way. With more, they are the same on all ranks, but
    the two ways round differently: a number's place in the buffer decides the order in which ranks add to it.

    Nothing is cached between steps but the positions that each layer keeps. Buckets may be rebuilt and masks may change
    at any time.
    """

    def __init__(self, masks: MaskSet, *, active: bool = True) -> None:
        self.active = active
        self.bytes_sent = 0
        """Bytes that this rank has handed to the all-reduce so far. A ring sends up to twice as many over the wire."""
        self._layers = {id(layers[0].parameter): layers for layers in by_parameter(masks).values()}

    def register(self, module: DistributedDataParallel) -> None:
        """Install the hook, before the first backward. It works with `gradient_as_bucket_view` and `no_sync`."""
        module.register_comm_hook(self, ActiveAllReduce._reduce)

    def _reduce(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        buffer: Tensor = bucket.buffer()
        pieces = list(self._pieces(bucket)) if self.active else []
        if all(index is None for _, index in pieces):
            return self._sum(buffer).then(lambda future: future.value()[0])
        sizes = [flat.numel() if index is None else index.numel() for flat, index in pieces]
        packed = buffer.new_empty(sum(sizes))
        for (flat, index), place in zip(pieces, packed.split(sizes), strict=True):
            if index is None:
                place.copy_(flat)
            else:
                torch.index_select(flat, 0, index, out=place)

        def unpack(future: Future[list[Tensor]]) -> Tensor:
            values = future.value()[0].split(sizes)
            for (flat, index), value in zip(pieces, values, strict=True):
                if index is None:
                    flat.copy_(value)
                else:
                    flat.zero_().index_copy_(0, index, value)
            return buffer

        return self._sum(packed).then(unpack)

    def _pieces(
        self,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the flat memory of each gradient or part of one, with the positions to send, int64. None: all of them.

        In the bucket a gradient has its parameter's memory format, channels last for instance, though the bucket's own
        views of it say otherwise.
        """
        for gradient, parameter in zip(bucket.gradients(), bucket.parameters(), strict=True):
            yield from memory_of(gradient, parameter, self._layers.get(id(parameter), ()))

    def _sum(self, values: Tensor) -> Future[list[Tensor]]:
        """Sum the values over the ranks, divided by their number first: DDP divides while it fills the bucket."""
        self.bytes_sent += values.numel() * values.element_size()
        future: Future[list[Tensor]] = dist.all_reduce(
            values.mul_(1 / dist.get_world_size()), async_op=True
        ).get_future()
        return future
