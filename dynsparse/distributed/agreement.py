"""Agreement of ranks about a model: compare it by checksums, average what may differ, repair what must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

from dynsparse.distributed import digest, sync
from dynsparse.masks import MaskSet
from dynsparse.masks.tensors import flat_view


def all_agree(names: Sequence[str], rows: Tensor, group: sync.Group = None) -> list[str]:
    """Compare checksums (int64 [names]) over the ranks.

    Returns the names that differ, the same list on every rank. It is empty where all agree, which costs each rank a few
    messages of two numbers.
    """
    if not sync.connected(group):
        return []
    values = digest.to_host(rows)
    mine = digest.total(names, values) >> 1  # 63 bits fit a signed integer.
    bounds = sync.largest_(torch.tensor([mine, -mine]), group)
    if int(bounds[0]) == -int(bounds[1]):
        return []
    table = [torch.empty(len(values), dtype=torch.int64) for _ in range(sync.world_size(group))]
    dist.all_gather(table, torch.tensor(values), group=sync.carrier(group, "cpu"))
    differs = (torch.stack(table) != table[0]).any(0).tolist()
    # Totals cannot differ with equal rows. Yet a mismatch must never pass for agreement.
    return [name for name, bad in zip(names, differs, strict=True) if bad] or ["(unknown)"]


def average_buffers(model: nn.Module, but: Sequence[nn.Module] = ()) -> None:
    """Replace each floating point buffer (BatchNorm statistics) by its mean over the ranks.

    Those of the modules `but` are left as they are: the mean of equal numbers may be another one by rounding.
    """
    kept = {id(buffer) for module in but for buffer in module.buffers()}
    if sync.connected():
        for buffer in model.buffers():
            if buffer.is_floating_point() and id(buffer) not in kept:
                sync.sum_(buffer).div_(dist.get_world_size())


@torch.no_grad()
def repair(
    model: nn.Module,
    masks: MaskSet,
    optimizers: Sequence[optim.Optimizer],
    method_state: Mapping[str, Any],
    group: sync.Group = None,
) -> Any:
    """Give every rank rank 0's masks, weights and optimizer state, in place. Returns rank 0's `method_state`.

    Parameters that DistributedDataParallel was told to ignore are each rank's own, and stay as they are.
    """
    if not sync.connected(group):
        return method_state
    saved = sync.from_rank_0(lambda: (masks.state_dict(), dict(method_state)), group)
    if sync.rank(group) != 0:
        masks.load_state_dict(saved[0])
    shared = digest.shared_parameters(model).values()
    for parameter in shared:
        sync.broadcast_(flat_view(parameter), group)
    for optimizer in optimizers:
        for parameter in shared:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor):
                    sync.broadcast_(flat_view(value), group)
    return saved[1]
