"""Random numbers that a network draws in its forward pass: dropout, stochastic depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dynsparse.seeds import seed_for
from pipelines.base import Batch
from pipelines.order import Share


def each(micro_batches: Sequence[Batch], seed: int, step: int, share: Share, device: torch.device) -> Iterator[Batch]:
    """Yield the micro-batches, and before each seed the host's and the device's generators for its part of the batch.

    The numbers depend on the run's seed, the step and the part alone. So they are other ones on each worker, and the
    same ones in a run that is resumed, or cut into as many parts on another number of workers.
    """
    first = share.rank * share.micro_batches
    for place, batch in enumerate(micro_batches, start=first):
        _seed(seed_for(seed, "forward", step, place), device)
        yield batch


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that a forward pass on the device draws from.

    `torch.manual_seed` seeds those of all devices, and where there is no GPU it notes down who asked, which takes a
    tenth of a step of a small network.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
