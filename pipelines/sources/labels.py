"""Labels of samples in shards, held against the classes that were asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError


def named_or_numbered(names: tuple[str, ...], number_of_classes: int) -> tuple[str, ...]:
    """Return the names of the classes, or their numbers where the names are of another count."""
    return names if len(names) == number_of_classes else tuple(map(str, range(number_of_classes)))


def require_labels(
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    name: Callable[[int], str],
    *,
    where: str,
    setting: str,
    every_class: bool,
) -> None:
    """Raise UserError for no sample, a label that no class has and, with `every_class`, a class without a sample.

    `name` tells the name of a sample by its index, `where` the shards, and `setting` who gave them.
    """
    classes = len(class_names)
    if len(labels) == 0:
        raise UserError(f"{setting}: {where} hold no sample; give shards with samples")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UserError(
            f"{setting}: {name(int(wrong[0]))} has label {labels[wrong[0]]}, "
            f"data.number_of_classes is {classes} and labels go from 0 to {classes - 1}; correct one of them"
        )
    missing = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if every_class and len(missing):
        label = missing[0]
        raise UserError(
            f"{setting}: {len(missing)} of {classes} classes have no sample in {where}, such as "
            f"label {label} ({class_names[label]}); complete the shards, or lower data.number_of_classes"
        )
