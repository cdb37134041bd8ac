"""Which training samples are held out, to choose the best epoch by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError
from pipelines.order import Indices, shuffled


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> tuple[Indices, Indices]:
    """Indices, rising, of the samples to train on and of the `count` samples held out; together each sample once.

    `labels` is int64 [n], one class a sample. Each class gives `count` times
    its share of the data, rounded by largest remainder so that the total is
    exact. A pure function of its arguments, the same for ever. Raises
    UserError if no training sample would be left, in all or in one class.
    """
    size = len(labels)
    if not 0 <= count < max(size, 1):
        raise UserError(
            f"data.validation_samples is {count}, the training set has {size} samples; "
            f"some must be left to train on: lower it to less than {size}"
        )
    classes, members = np.unique(labels, return_counts=True)
    shares = _largest_remainder(members, count)
    if count and (shares == members).any():
        emptied = classes[shares == members]
        raise UserError(
            f"data.validation_samples is {count}; of class {emptied[0]} ({members[shares == members][0]} samples) "
            f"none would be left to train on: lower it"
        )
    shuffle = shuffled(size, seed, "split")
    by_class = shuffle[np.argsort(labels[shuffle], kind="stable")]  # Class after class, each in random order.
    place = np.arange(size) - np.repeat(np.cumsum(members) - members, members)
    held = place < np.repeat(shares, members)
    return np.sort(by_class[~held]), np.sort(by_class[held])


def _largest_remainder(members: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """int64 [classes]: `count` shared out in proportion to `members`, each within 1; ties go to the lower class."""
    total = max(int(members.sum()), 1)
    shares, remainders = np.divmod(members * count, total)
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    return shares.astype(np.int64)
