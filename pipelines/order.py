"""Which samples make up which batch. The trainer's own, so that no loader decides it.

A pure function of the seed: nothing to save, the same for every number of
workers, and any batch of any epoch can be asked for directly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """The part of each global batch that one worker gets, cut into micro-batches.

    A global batch is cut into one contiguous slice a rank, each slice into
    `micro_batches` contiguous parts (gradient accumulation).
    """

    rank: int = 0
    workers: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.workers and self.micro_batches >= 1, self


class SampleOrder:
    """The order of training: batch b of epoch e, for a data set of `size` samples.

    Each epoch is a new permutation; the last, partial batch of an epoch is
    dropped (its samples come up in other epochs). Raises DataError if the data
    set is smaller than one batch.
    """

    def __init__(self, seed: int, size: int, global_batch: int) -> None:
        if size < global_batch:
            raise DataError(
                f"train.global_batch_size is {global_batch}, the data set has {size} samples; "
                f"an epoch would have no batch: lower it to {size} or less"
            )
        self.seed = seed
        self.size = size
        self.global_batch = global_batch
        self._latest: tuple[int, Indices] | None = None

    @property
    def batches_per_epoch(self) -> int:
        return self.size // self.global_batch

    def permutation(self, epoch: int) -> Indices:
        """int64 [size]: the samples in the order of this epoch. The latest epoch's is kept."""
        if self._latest is None or self._latest[0] != epoch:
            key = hashlib.blake2b(f"{self.seed}\0order\0{epoch}".encode(), digest_size=16).digest()
            # Sorting raw words of a named generator: NumPy promises their stream for ever,
            # which it does not for `permutation`.
            words = np.random.Philox(key=int.from_bytes(key, "big")).random_raw(self.size)
            self._latest = (epoch, np.argsort(words, kind="stable").astype(np.int64))
        return self._latest[1]

    def batch(self, epoch: int, batch: int) -> Indices:
        """int64 [global_batch]: the samples of one global batch."""
        assert 0 <= batch < self.batches_per_epoch, (batch, self.batches_per_epoch)
        start = batch * self.global_batch
        return self.permutation(epoch)[start : start + self.global_batch]

    def micro_batch(self, epoch: int, batch: int, part: int, share: Share) -> Indices:
        """int64 [global_batch / workers / micro_batches]: what one worker gets as part `part` of a batch."""
        size, rest = divmod(self.global_batch, share.workers * share.micro_batches)
        assert rest == 0 and 0 <= part < share.micro_batches, (self.global_batch, share, part)
        start = (share.rank * share.micro_batches + part) * size
        return self.batch(epoch, batch)[start : start + size]


def evaluation_batches(size: int, batch: int, rank: int, workers: int) -> list[Indices]:
    """One worker's batches of an evaluation: over all workers each of `size` samples exactly once.

    Contiguous shares whose lengths differ by at most one; the last batch of a
    worker may be smaller, and a worker may have none.
    """
    start, end = rank * size // workers, (rank + 1) * size // workers
    return [np.arange(i, min(i + batch, end), dtype=np.int64) for i in range(start, end, batch)]
