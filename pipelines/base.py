"""The contract of a pipeline, and what it is made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pipelines.order import SampleOrder, Share

Batch = tuple[Tensor, Tensor]
"""Images float32 [batch, channels, height, width], normalised, and labels int64 [batch], on the device."""


class TrainPipeline(Protocol):
    """Delivers the micro-batches of one worker, epoch after epoch, in the order of its `SampleOrder`."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        ...

    def epoch(self) -> Iterator[list[Batch]]:
        """The remaining steps of the current epoch, each a list of micro-batches; then moves to the next epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, and what must be the same for it to mean the same samples."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the next step is the one that would have come. DataError if the data differ."""
        ...


class EvaluationPipeline(Protocol):
    """Delivers this worker's share of an evaluation: over all workers each sample once."""

    @property
    def samples(self) -> int:
        """Samples over all workers."""
        ...

    def batches(self) -> Iterator[Batch]:
        """One pass. The last batch may be smaller."""
        ...


@dataclass(frozen=True)
class Request:
    """What a run asks of a data set."""

    seed: int
    global_batch: int
    share: Share
    evaluation_batch: int
    """Samples in a batch of each worker."""
    device_id: int | None
    """Index of the worker's GPU; None for the CPU."""
    evaluate_train: bool = False
    """Build `Data.train_evaluation`."""

    def order(self, size: int) -> SampleOrder:
        return SampleOrder(self.seed, size, self.global_batch)


@dataclass(frozen=True)
class Data:
    """The pipelines of a run."""

    train: TrainPipeline
    test: EvaluationPipeline
    validation: EvaluationPipeline | None = None
    """The training samples held out, as evaluation sees them; None if the settings hold none out."""
    train_evaluation: EvaluationPipeline | None = None
    """The samples trained on, each once, as evaluation sees them; None unless asked for."""
