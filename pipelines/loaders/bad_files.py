"""Bad samples, whose files are damaged or cannot be read: an error, or a replacement."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipelines.common.errors import UserError
from pipelines.loaders.base import Loader
from pipelines.order import Indices, shuffled
from pipelines.sources.base import Encoded, Source

log = logging.getLogger(__name__)

SAID = 10
"""Bad samples that a worker names one by one; there may be thousands."""


@dataclass
class BadFiles:
    """Bad samples of a source, and their replacements.

    A replacement depends on the seed and on the files alone, so that all workers, and a resumed run, choose the same.
    """

    source: Source
    loader: Loader
    seed: int
    skip: bool
    """True to skip bad samples; else the first one is an error."""
    where: str
    """Setting of the data for messages, such as "data.path: data/imagenet"."""
    faults: dict[int, str] = field(default_factory=dict)
    _instead: dict[int, int] = field(default_factory=dict)

    def found(self, faults: Mapping[int, str], position: str) -> None:
        """Note bad samples. Raises UserError for the first one, unless bad samples are skipped."""
        if not self.skip:
            index, fault = next(iter(faults.items()))
            more = f" (and {len(faults) - 1} more in this batch)" if len(faults) > 1 else ""
            raise UserError(
                f"{self.where}: {self._described(index)}, {position}: {fault}{more}; list all such files with "
                f"`python -m pipelines scan` for data.exclude, or set data.on_bad_file=skip"
            )
        for index, fault in faults.items():
            if index not in self.faults and len(self.faults) < SAID:
                # An error, not a warning: warnings are shown for the first worker alone.
                log.error("skipping %s, %s: %s", self._described(index), position, fault)
            self.faults[index] = fault
        if len(self.faults) >= SAID > len(self.faults) - len(faults):
            log.error("more bad files of this worker are counted, not named: `python -m pipelines scan` lists them")

    def replaced(self, indices: Indices, candidates: Indices) -> Indices:
        """Return the samples, with each bad one replaced by a candidate of the same class."""
        if not self.faults:
            return indices
        return np.array([self._replacement(int(index), candidates) for index in indices], dtype=np.int64)

    def _replacement(self, index: int, candidates: Indices) -> int:
        if index not in self.faults:
            return index
        chosen = self._instead.get(index)
        if chosen is None or chosen in self.faults:
            chosen = self._instead[index] = self._choose(index, candidates)
        return chosen

    def _choose(self, index: int, candidates: Indices) -> int:
        """Return the first good candidate in a random order.

        Each is decoded here, for workers know of different bad samples.
        """
        label = int(self.source.labels[index])
        others = candidates[self.source.labels[candidates] == label]
        assert isinstance(self.source, Encoded)
        for other in others[shuffled(len(others), self.seed, "instead of", index)].tolist():
            if other not in self.faults and self.loader.fault(self.source, other) is None:
                return int(other)
        raise UserError(f"{self.where}: class {self._class(label)} has no good sample left; repair or remove the class")

    def _described(self, index: int) -> str:
        label = self._class(int(self.source.labels[index]))
        return f"{self.source.name(index)} (class {label}, sample {index} of {len(self.source.labels)})"

    def _class(self, label: int) -> str:
        names = self.source.class_names
        return names[label] if label < len(names) else str(label)
