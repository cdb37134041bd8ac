"""Communication between ranks, apart from gradients: tensors, flags, messages, objects.

Every function is a collective: all ranks of the group call it, in the same order. A group of None is all ranks. With
one process each is a no-op. CPU tensors travel over gloo, whatever the gradients use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dynsparse.errors import UserError

T = TypeVar("T")
Group = dist.ProcessGroup | None
"""Ranks that train one model. None: all of them."""

_CPU_TWINS: dict[dist.ProcessGroup, dist.ProcessGroup] = {}


def connected(group: Group = None) -> bool:
    """Whether there is any other rank in the group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def rank(group: Group = None) -> int:
    """Number of this rank in the group."""
    return dist.get_rank(group) if connected(group) else 0


def world_size(group: Group = None) -> int:
    """Number of ranks in the group."""
    return dist.get_world_size(group) if connected(group) else 1


def carrier(group: Group, device: str) -> dist.ProcessGroup:
    """Return a group of the same ranks whose backend takes tensors of this kind of device.

    A job that was started with NCCL alone has none for the CPU: it gets a second group, over gloo, at the first use.
    """
    whole = group if group is not None else dist.group.WORLD
    assert whole is not None
    if _takes(whole, device):
        return whole
    if whole not in _CPU_TWINS:
        ranks = dist.get_process_group_ranks(whole)
        _CPU_TWINS[whole] = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return _CPU_TWINS[whole]


def _takes(group: dist.ProcessGroup, device: str) -> bool:
    try:
        group._get_backend(torch.device(device))
    except RuntimeError:
        return False
    return True


def _first(group: Group) -> int:
    """Number of the group's rank 0 among all ranks."""
    return 0 if group is None else dist.get_global_rank(group, 0)


def broadcast_(tensor: Tensor, group: Group = None) -> Tensor:
    """Copy rank 0's values to every rank's CPU or CUDA tensor, in place."""
    if connected(group):
        dist.broadcast(tensor, src=_first(group), group=carrier(group, tensor.device.type))
    return tensor


def sum_(tensor: Tensor, group: Group = None) -> Tensor:
    """Sum every rank's tensor over the ranks, in place."""
    if connected(group):
        dist.all_reduce(tensor, group=carrier(group, tensor.device.type))
    return tensor


def largest_(tensor: Tensor, group: Group = None) -> Tensor:
    """Take the largest over the ranks of every rank's small CPU tensor, entry by entry and in place.

    Recursive doubling takes log2(n) exchanges one after the other, and two more where n is not a power of 2. Gloo's own
    all-reduce is a ring of 2 (n - 1), however few the bytes.

    Example, 4 ranks that hold 3 1 4 1. Ranks 0 and 1, and 2 and 3, exchange: 3 3 4 4. Ranks 0 and 2, and 1 and 3,
    exchange: 4 4 4 4. A fifth rank would first send its value to rank 0, and receive the result from it at the end.
    """
    if not connected(group):
        return tensor
    over = carrier(group, "cpu")
    mine, ranks = dist.get_rank(over), dist.get_world_size(over)
    doubling = 1 << (ranks.bit_length() - 1)
    spare = ranks - doubling  # As many ranks let a partner speak for them.
    if mine >= doubling:
        dist.send(tensor, group_dst=mine - doubling, group=over)
        dist.recv(tensor, group_src=mine - doubling, group=over)
        return tensor
    theirs = torch.empty_like(tensor)
    if mine < spare:
        dist.recv(theirs, group_src=mine + doubling, group=over)
        torch.maximum(tensor, theirs, out=tensor)
    distance = 1
    while distance < doubling:
        sending = dist.isend(tensor.clone(), group_dst=mine ^ distance, group=over)
        dist.recv(theirs, group_src=mine ^ distance, group=over)
        assert sending is not None
        sending.wait()
        torch.maximum(tensor, theirs, out=tensor)
        distance *= 2
    if mine < spare:
        dist.send(tensor, group_dst=mine + doubling, group=over)
    return tensor


def any_rank(flag: bool, group: Group = None) -> bool:
    """Whether `flag` is set on any rank."""
    return any_of(flag, group=group)[0]


def any_of(*flags: bool, group: Group = None) -> tuple[bool, ...]:
    """Whether each of several flags is set on any rank, in one exchange."""
    if not connected(group):
        return flags
    return tuple(map(bool, largest_(torch.tensor([int(flag) for flag in flags]), group).tolist()))


def gather(value: T) -> list[T] | None:
    """Return every rank's picklable `value`, by rank, on rank 0; None elsewhere."""
    if not connected():
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values


def all_of(value: T, group: Group = None) -> list[T]:
    """Return every rank's picklable `value`, by rank, on every rank."""
    if not connected(group):
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=carrier(group, "cpu"))
    return values


def all_said(message: str | None, group: Group = None) -> list[str]:
    """Messages of all ranks, on every rank, each once."""
    return list(dict.fromkeys(said for said in all_of(message, group) if said is not None))


def together(act: Callable[[], T], group: Group = None) -> T:
    """Run `act` on every rank, and let all ranks succeed or fail as one.

    If it raises a ValueError anywhere, every rank raises a UserError with the message of the first that failed. After
    any other exception that rank raises it, and the others a RuntimeError: no rank is left waiting. `act` itself must
    not communicate with other ranks.
    """
    result: list[T] = []
    refused, fault = None, None
    try:
        result.append(act())
    except ValueError as error:
        refused = str(error)
    except Exception as error:  # noqa: BLE001 - raised below, once the others know.
        fault = error
    failures = all_of((refused, fault and f"{type(fault).__name__}: {fault}"), group)
    if fault is not None:
        raise fault
    for _, other in failures:
        if other is not None:
            raise RuntimeError(f"another rank failed: {other}")
    for message, _ in failures:
        if message is not None:
            raise UserError(*message.splitlines())
    return result[0]


def from_rank_0(produce: Callable[[], T], group: Group = None) -> T:
    """Run `produce` on rank 0 alone and give its picklable result to all ranks; errors as in `together`."""
    answer: list[Any] = [together(lambda: produce() if rank(group) == 0 else None, group)]
    if connected(group):
        dist.broadcast_object_list(answer, src=_first(group), group=carrier(group, "cpu"))
    result: T = answer[0]
    return result
