"""Scores of a large layer on a GPU, in parts that are made when they are asked for.

Memory for work on the layer then does not grow with it. All choices are those of the whole layer, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dynsparse.masks.layer import SparseLayer


class Parted:
    """Scores of a layer by the parts of its rows, each made anew when it is asked for. None is kept."""

    def __init__(self, parts: Sequence[SparseLayer], make: Callable[[int, SparseLayer], Tensor], entries: int) -> None:
        self._parts, self._make, self._entries = parts, make, entries

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Tensor]:
        return (self._make(k, part) for k, part in enumerate(self._parts))

    def numel(self) -> int:
        """Number of all scores."""
        return self._entries

    @property
    def dtype(self) -> torch.dtype:
        """Type of the scores."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Device of the scores."""
        return self._first.device

    @property
    def is_cuda(self) -> bool:
        """Whether the scores lie on a GPU."""
        return self._first.is_cuda

    @property
    def _first(self) -> Tensor:
        return self._make(0, self._parts[0])

    def then(self, change: Callable[[SparseLayer, Tensor], Tensor]) -> Parted:
        """Return scores that `change`, given the part of the layer, makes of these."""
        return Parted(self._parts, lambda k, part: change(part, self._make(k, part)), self._entries)


Scores = Tensor | Parted
"""Scores of a layer: one for each of its units, or of its active units."""


def each(scores: Scores) -> Sequence[Tensor] | Parted:
    """Return the parts of scores, in their order: themselves, if they are not parted."""
    return scores if isinstance(scores, Parted) else (scores,)


def whole(scores: Scores) -> Tensor:
    """Return scores that are not parted, as those of small layers and of layers with a structure."""
    assert not isinstance(scores, Parted), "scores of a large layer are read in parts"
    return scores
