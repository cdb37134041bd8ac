"""What becomes of samples that cannot be had: files that are damaged or cannot be read."""

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
"""Bad samples of a worker that it names one by one; of more there may be thousands."""


@dataclass
class BadFiles:
    """Bad samples of a source, and what comes in their place.

    A replacement depends on the seed and on the files alone, so that all
    workers, and a run that was resumed, take the same.
    """

    source: Source
    loader: Loader
    seed: int
    skip: bool
    """Go on without them; or else the first one is an error."""
    where: str
    """What is read, such as "data.path: data/imagenet", for messages."""
    faults: dict[int, str] = field(default_factory=dict)
    _instead: dict[int, int] = field(default_factory=dict)

    def found(self, faults: Mapping[int, str], position: str) -> None:
        """Note bad samples. Raises UserError for the first one unless they are to be skipped."""
        if not self.skip:
            index, fault = next(iter(faults.items()))
            more = f" (and {len(faults) - 1} more in this batch)" if len(faults) > 1 else ""
            raise UserError(
                f"{self.where}: {self._described(index)}, {position}: {fault}{more}; list all such files with "
                f"`python -m pipelines scan` for data.exclude, or go on with data.on_bad_file=skip"
            )
        for index, fault in faults.items():
            if index not in self.faults and len(self.faults) < SAID:
                # Not a warning: those of workers other than the first are not shown.
                log.error("skipping %s, %s: %s", self._described(index), position, fault)
            self.faults[index] = fault
        if len(self.faults) >= SAID > len(self.faults) - len(faults):
            log.error("more bad files of this worker are counted, not named: `python -m pipelines scan` lists them")

    def replaced(self, indices: Indices, candidates: Indices) -> Indices:
        """The samples with another of the same class, one of the candidates, for each bad one."""
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
        """The first in a random order that is whole: tried now, for what is known differs between workers."""
        label = int(self.source.labels[index])
        others = candidates[self.source.labels[candidates] == label]
        assert isinstance(self.source, Encoded)
        for other in others[shuffled(len(others), self.seed, "instead of", index)].tolist():
            if other not in self.faults and self.loader.fault(self.source, other) is None:
                return int(other)
        raise UserError(
            f"{self.where}: class {self._class(label)} has no sample left that can be had; mend or remove the class"
        )

    def _described(self, index: int) -> str:
        label = self._class(int(self.source.labels[index]))
        return f"{self.source.name(index)} (class {label}, sample {index} of {len(self.source.labels)})"

    def _class(self, label: int) -> str:
        names = self.source.class_names
        return names[label] if label < len(names) else str(label)
