"""Random numbers that a network draws in its forward pass: dropout, stochastic depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dynsparse.seeds import seed_for
from pipelines.base import Batch
from pipelines.order import Share


def each(micro_batches: Sequence[Batch], seed: int, step: int, share: Share) -> Iterator[Batch]:
    """Yield the micro-batches, and before each seed torch's generators for its part of the global batch.

    The numbers depend on the run's seed, the step and the part alone. So they are other ones on each worker, and the
    same ones in a run that is resumed, or cut into as many parts on another number of workers.
    """
    first = share.rank * share.micro_batches
    for place, batch in enumerate(micro_batches, start=first):
        torch.manual_seed(seed_for(seed, "forward", step, place))
        yield batch
