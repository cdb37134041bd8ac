"""The contract of a pipeline, and what it is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from pipelines.order import Share
from pipelines.views import Normalisation

Batch = tuple[Tensor, Tensor]
"""Images [batch, channels, height, width], normalised, and labels int64 [batch], on the device.

Float32, or as the `Request` says: half precision, channels last in memory.
"""


class TrainPipeline(Protocol):
    """Delivers the micro-batches of one worker, epoch after epoch, in the order of its `SampleOrder`."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        ...

    def epoch(self) -> Iterator[list[Batch]]:
        """The remaining steps of the current epoch, each a list of micro-batches; then moves to the next epoch.

        Raises UserError at a bad sample unless those are to be skipped.
        """
        ...

    def seek(self, epoch: int, batch: int) -> None:
        """Go to a position: `batch` is the next step of `epoch`, both counted from 0; `steps_per_epoch` is its end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, and what must be the same for it to mean the same samples."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the next step is the one that would have come. UserError if the data differ."""
        ...

    @property
    def bad_samples(self) -> dict[int, str]:
        """Those found that cannot be had, each with the reason, on this worker or told by `avoid`."""
        ...

    def avoid(self, bad: Mapping[int, str]) -> None:
        """Take others in place of these samples, from now on."""
        ...

    def close(self) -> None:
        """Let go of threads and processes; they come again with the next batch."""
        ...


class EvaluationPipeline(Protocol):
    """Delivers this worker's share of an evaluation: over all workers each sample once."""

    @property
    def samples(self) -> int:
        """Samples over all workers, those left out among them."""
        ...

    @property
    def listing(self) -> str:
        """A digest of the samples and their order."""
        ...

    @property
    def left_out(self) -> int:
        """Samples of this worker's share that cannot be had. `batches` is without them."""
        ...

    def batches(self) -> Iterator[Batch]:
        """One pass. The last batch may be smaller. Raises UserError at a bad sample unless those are to be skipped."""
        ...

    def close(self) -> None:
        """As in `TrainPipeline`."""
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
    channels_last: bool = False
    """How images are to lie in memory."""


@dataclass(frozen=True)
class SplitSize:
    """How much there is to train or to evaluate on."""

    samples: int
    classes: int
    """Of which there is a sample."""


@dataclass(frozen=True)
class Data:
    """The pipelines of a run."""

    train: TrainPipeline
    test: EvaluationPipeline | None
    """None if the data set has no test data; there is a validation then."""
    validation: EvaluationPipeline | None = None
    """What chooses the best epoch: the data set's own, or the training samples held out. None if there is neither."""
    train_evaluation: EvaluationPipeline | None = None
    """The samples trained on, each once, as evaluation sees them; None unless asked for."""
    class_names: tuple[str, ...] = ()
    """By label; empty if the classes have no names."""
    normalisation: Normalisation | None = None
    """What was done to the grey levels."""
    sizes: Mapping[str, SplitSize] = field(default_factory=dict)
    """Of train, validation and test, as far as they are there, by these names."""

    @property
    def evaluated_on(self) -> dict[str, str]:
        """The listings of validation and test, as far as they are there."""
        both = {"validation": self.validation, "test": self.test}
        return {name: pipeline.listing for name, pipeline in both.items() if pipeline is not None}

    def close(self) -> None:
        """Let go of all threads and processes."""
        for pipeline in (self.train, self.test, self.validation, self.train_evaluation):
            if pipeline is not None:
                pipeline.close()
