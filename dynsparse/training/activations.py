"""Bytes that a forward pass keeps for the backward pass, counted without computing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakSet

from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from dynsparse.training.engine import Engine
from pipelines.base import Batch


@dataclass(frozen=True, eq=False)
class _Saved:
    """A tensor that the graph of a forward pass holds: it lives as long as that does."""

    tensor: Tensor


def kept_bytes(forward: Callable[[], Tensor], but: Iterable[Tensor]) -> int:
    """Return the bytes that the graph of a result holds. Each storage counts once, and those of `but` do not count."""
    saved: WeakSet[_Saved] = WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved.add(one := _Saved(tensor.detach()))  # A result itself would keep its graph alive, and that the result.
        return one

    with saved_tensors_hooks(pack, lambda one: one.tensor):
        result = forward()
    held = [one.tensor for one in saved]
    del result  # The graph was alive until here, and what it has let go before is not in the list.
    known = {_storage(tensor) for tensor in but}
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(size for storage, size in sizes.items() if storage not in known)


def of_step(engine: Engine, batch: Batch) -> int | str:
    """Return the bytes that the forward pass of a micro-batch keeps, or why they cannot be counted.

    Only shapes are computed, by torch's fake tensors, in the run's precision and with the modes that the modules have.
    Copies of weights in another precision count, for they are kept too. A compiled network counts as if it was not.
    In bf16 torch's shapes of a BatchNorm on the CPU lack 4 bytes a channel.
    """
    tensors = itertools.chain(engine.model.named_parameters(), engine.model.named_buffers())
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # Such as a teacher's weights.
    try:
        fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in tensors}
        images, labels = map(mode.from_tensor, batch)
        with mode:
            return kept_bytes(
                lambda: engine.loss(images, labels, lambda ours: functional_call(engine.model, fakes, (ours,)))[1],
                but=fakes.values(),
            )
    except Exception as error:  # noqa: BLE001 - a forward of anybody's may ask for values, which fake tensors lack
        return f"the network does not run on shapes alone ({' '.join(str(error).split())[:80]})"


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
