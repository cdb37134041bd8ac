"""The order of samples: which samples make up which batch. No loader decides it.

It is a pure function of the seed: there is nothing to save, it is the same for every number of workers, and any batch
of any epoch can be computed directly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError

Indices = NDArray[np.int64]
Uniforms = NDArray[np.float64]
"""Random numbers in [0, 1), float64 [samples, numbers for each sample]."""


def generator(*purpose: object) -> np.random.Philox:
    """Return a generator that is a pure function of its purpose. Use only its raw words.

    NumPy promises that the stream of raw words never changes. It does not promise that for `permutation` and others.
    """
    key = hashlib.blake2b("\0".join(map(str, purpose)).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "big"))


def fractions(words: NDArray[np.uint64]) -> Uniforms:
    """Return numbers in [0, 1), float64, from random words.

    They keep the upper 53 bits, as many as a float64 holds: each multiple of 2^-53 is equally likely.
    """
    return (words >> 11).astype(np.float64) * 2.0**-53


def shuffled(size: int, *purpose: object) -> Indices:
    """Return a permutation, int64 [size], that is a pure function of the arguments. It sorts random words."""
    return np.argsort(generator(*purpose).random_raw(size), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Share:
    """The part of each global batch that one worker gets, cut into micro-batches.

    A global batch is cut into one contiguous slice a rank, and each slice into `micro_batches` contiguous parts
    (gradient accumulation). Parts differ by at most one unit.
    """

    rank: int = 0
    workers: int = 1
    micro_batches: int = 1
    unit: int = 1
    """Neighbouring samples that stay together in one part, such as 2 where pairs are mixed."""

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.workers and self.micro_batches >= 1, self

    def part(self, part: int, global_batch: int) -> slice:
        """Return the slice of a global batch that is part `part` of this worker."""
        assert 0 <= part < self.micro_batches, (self, part)
        assert global_batch % self.unit == 0, (self, global_batch)
        place, parts = self.rank * self.micro_batches + part, self.workers * self.micro_batches
        start, end = (at * (global_batch // self.unit) // parts * self.unit for at in (place, place + 1))
        return slice(start, end)

    def largest(self, global_batch: int) -> int:
        """Return the number of samples in the largest part of this worker."""
        return max(len(range(global_batch)[self.part(part, global_batch)]) for part in range(self.micro_batches))


class SampleOrder:
    """The order of training: batch b of epoch e, for a data set of `size` samples.

    Each epoch is a new permutation. The last, partial batch of an epoch is dropped; its samples occur in other epochs.
    With `repeats` each sample of a batch appears that many times in it (repeated augmentation, Hoffer et al. 2020). An
    epoch has as many batches as without, so it sees fewer samples, as in DeiT. Raises UserError if the data set is
    smaller than one batch, or if `repeats` does not divide that.
    """

    def __init__(self, seed: int, size: int, global_batch: int, repeats: int = 1) -> None:
        if size < global_batch:
            raise UserError(
                f"train.global_batch_size is {global_batch}, the data set has {size} samples; "
                f"an epoch would have no batch: lower it to {size} or less"
            )
        if global_batch % repeats:
            raise UserError(
                f"data.repeated_augmentation is {repeats}, train.global_batch_size {global_batch}; each sample of a "
                f"global batch appears {repeats} times: set a global batch size that {repeats} divides"
            )
        self.seed = seed
        self.size = size
        self.global_batch = global_batch
        self.repeats = repeats
        self._latest: tuple[int, Indices] | None = None

    @property
    def batches_per_epoch(self) -> int:
        return self.size // self.global_batch

    def permutation(self, epoch: int) -> Indices:
        """Return the samples in the order of an epoch, int64 [size]. The latest epoch's order is kept."""
        latest = self._latest  # Another thread may read ahead in another epoch.
        if latest is None or latest[0] != epoch:
            latest = self._latest = (epoch, shuffled(self.size, self.seed, "order", epoch))
        return latest[1]

    def batch(self, epoch: int, batch: int) -> Indices:
        """Return the samples of one global batch, int64 [global_batch].

        Repeats are far from each other, so that several workers get different samples each: [3, 1, 3, 1], not
        [3, 3, 1, 1].
        """
        assert 0 <= batch < self.batches_per_epoch, (batch, self.batches_per_epoch)
        distinct = self.global_batch // self.repeats
        return np.tile(self.permutation(epoch)[batch * distinct : (batch + 1) * distinct], self.repeats)

    def micro_batch(self, epoch: int, batch: int, part: int, share: Share) -> Indices:
        """Return part `part` of one worker's share of a batch: int64 [about global_batch / workers / micro_batches]."""
        return self.batch(epoch, batch)[share.part(part, self.global_batch)]

    def randoms(self, epoch: int, batch: int, part: int, share: Share, k: int, stream: str = "augment") -> Uniforms:
        """Return k random numbers for each sample of `micro_batch`: float64 [samples, k] in [0, 1).

        They depend on the sample's place in the global batch, not on the worker. So augmentation needs no state, and is
        the same for every number of workers. Each stream has its own: an option does not change those of another.
        """
        place = share.part(part, self.global_batch)
        # Philox counts in blocks of four words: jump to the first block that holds a word of this share.
        # For the slice 5:7 and k = 3 the words are 15..20: 3 blocks are passed, then 3 words skipped, then 6 taken.
        blocks, skipped = divmod(place.start * k, 4)
        size = place.stop - place.start
        philox = generator(self.seed, stream, epoch, batch)
        philox.advance(blocks)
        words: NDArray[np.uint64] = philox.random_raw(skipped + size * k)[skipped:]
        return fractions(words).reshape(size, k)


def evaluation_batches(size: int, batch: int, rank: int, workers: int) -> list[Indices]:
    """Return one worker's batches of an evaluation: all workers together visit each of `size` samples exactly once.

    The shares are contiguous, and their lengths differ by at most one. The last batch of a worker may be smaller, and a
    worker may have no batch.
    """
    start, end = rank * size // workers, (rank + 1) * size // workers
    return [np.arange(i, min(i + batch, end), dtype=np.int64) for i in range(start, end, batch)]
