"""The split that holds out training samples, to choose the best epoch by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError
from pipelines.order import Indices, shuffled


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> tuple[Indices, Indices]:
    """Return the sorted indices of the samples to train on, and of the `count` samples held out.

    `labels` is int64 [n], one class a sample. Each class gives `count` times its fraction of the data, rounded by
    largest remainder so that the total is exact. A pure function of its arguments. Raises UserError if no training
    sample would be left, in all or in one class.

    Example: labels [0, 0, 0, 0, 1, 1] and count 3. Class 0 gives 3 * 4/6 = 2 samples and class 1 gives 1, each the
    first of its class in a random order.
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
    # The place of each sample among those of its class.
    place = np.arange(size) - np.repeat(np.cumsum(members) - members, members)
    held = place < np.repeat(shares, members)
    return np.sort(by_class[~held]), np.sort(by_class[held])


def _largest_remainder(members: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Divide `count` in proportion to `members`, int64 [classes], each within 1. Ties go to the lower class.

    Example: members [5, 3, 2] and count 4 are 2.0, 1.2 and 0.8: [2, 1, 0], and the last one goes to the third class.
    """
    total = max(int(members.sum()), 1)
    shares, remainders = np.divmod(members * count, total)
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    return shares.astype(np.int64)
