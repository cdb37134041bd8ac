"""Only the gradients of active weights travel: a communication hook of DistributedDataParallel.

Masks are the same on every rank, so that positions need not be sent, and what
lies outside them is masked after the reduction anyway. The bytes fall with the
density; the result is that of a dense all-reduce and masking after it.
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
from dynsparse.masks.tensors import flat_view

Gradients = Literal["auto", "active", "dense"]
"""What travels: the gradients of active weights, or all; auto: what is faster."""


class ActiveAllReduce:
    """Reduces the gradients of one DDP module to their mean over the ranks.

    Where `active` is set, only the active weights of `masks` and the whole
    parameters outside it are sent, and gradients outside the masks come back as
    0. Else every gradient is, in the very layout and order that DDP itself
    would use: to the same bits.

    With two ranks the active gradients are the same bits either way. With more
    they are the same on all ranks, and differ between the two ways in
    rounding: where a number lies in a buffer decides in which order the ranks'
    values are added.

    Nothing is cached between steps but the positions that each layer keeps of
    its own: buckets may be rebuilt and masks may change at any time.
    """

    def __init__(self, masks: MaskSet, *, active: bool = True) -> None:
        self.active = active
        self.bytes_sent = 0
        """Handed to the all-reduce by this rank, so far. What a ring sends over the wire is up to twice that."""
        self._layers = {id(layer.weight): layer for layer in masks}

    def register(self, module: DistributedDataParallel) -> None:
        """Before the first backward. Works with `gradient_as_bucket_view` and `no_sync`."""
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
        """For each gradient its memory as one dimension, and which positions of it to send; None: all of them.

        In the bucket a gradient lies as its parameter does, channels last for instance, though the bucket's own
        views of it say otherwise.
        """
        for gradient, parameter in zip(bucket.gradients(), bucket.parameters(), strict=True):
            layer = self._layers.get(id(parameter))
            sends_all = layer is None or layer.is_full
            yield flat_view(gradient), None if sends_all else layer.positions(parameter)  # type: ignore[union-attr]

    def _sum(self, values: Tensor) -> Future[list[Tensor]]:
        """Of the ranks' values divided by their number: as DDP does it, which divides while it fills the bucket."""
        self.bytes_sent += values.numel() * values.element_size()
        future: Future[list[Tensor]] = dist.all_reduce(
            values.mul_(1 / dist.get_world_size()), async_op=True
        ).get_future()
        return future
