"""The contract of a pipeline, and the request that it is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from pipelines.common.epochs import EpochTable
from pipelines.mixing import NO_MIXING, MixingSettings
from pipelines.order import Indices, Share
from pipelines.phases import Phase, Phases
from pipelines.views import Normalisation

Batch = tuple[Tensor, Tensor]
"""Images [batch, channels, height, width], normalised, and labels int64 [batch], on the device.

Float32 and contiguous, unless settings or `Request` ask for half precision or channels last in memory. Where samples
are mixed, labels are soft: float32 [batch, classes].
"""


def dominant(labels: Tensor) -> Tensor:
    """Return the class of each sample, int64 [batch]: of a soft label the one with the largest part."""
    return labels if labels.dim() == 1 else labels.argmax(1)


class TrainPipeline(Protocol):
    """Delivers the micro-batches of one worker, epoch after epoch, in the order of its `SampleOrder`."""

    @property
    def epochs(self) -> EpochTable:
        """Global batches in each epoch."""
        ...

    def epoch(self) -> Iterator[list[Batch]]:
        """Yield the remaining steps of the current epoch, each a list of micro-batches, then move to the next epoch.

        Raises UserError at a bad sample, unless bad samples are skipped.
        """
        ...

    def samples(self, epoch: int, batch: int) -> list[Indices]:
        """Return the numbers in the data set of the samples of each micro-batch of a step, int64 [samples] each.

        They are those that `epoch` reads there, as far as it is known by now which are bad. Both are counted from 0.
        """
        ...

    def seek(self, epoch: int, batch: int) -> None:
        """Go to a position: `batch` is the next step of `epoch`, both counted from 0; the epoch's steps are its end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what must be equal for it to mean the same samples."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a saved position. Raises UserError if it means other samples."""
        ...

    @property
    def bad_samples(self) -> dict[int, str]:
        """Bad samples with the reason, by index: found on this worker, or told by `avoid`."""
        ...

    def avoid(self, bad: Mapping[int, str]) -> None:
        """Replace these samples by others from now on."""
        ...

    def close(self) -> None:
        """End threads and processes; the next batch starts them again."""
        ...


class EvaluationPipeline(Protocol):
    """Delivers this worker's share of an evaluation: all workers together visit each sample once."""

    @property
    def samples(self) -> int:
        """Samples over all workers, skipped ones included."""
        ...

    @property
    def listing(self) -> str:
        """A digest of the samples and their order."""
        ...

    @property
    def left_out(self) -> int:
        """Bad samples of this worker's share, which `batches` skips."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Yield one pass; the last batch may be smaller. Raises UserError at a bad sample, unless they are skipped."""
        ...

    def close(self) -> None:
        """End threads and processes; the next batch starts them again."""
        ...


@dataclass(frozen=True)
class Request:
    """Request of a run to a data set: seed, batches, device and memory layout."""

    seed: int
    global_batch: int
    share: Share
    evaluation_batch: int
    """Samples in a worker's batch."""
    device_id: int | None
    """Index of the worker's GPU; None for the CPU."""
    evaluate_train: bool = False
    """True to build `Data.train_evaluation`."""
    channels_last: bool = False
    """Memory layout of images: channels last instead of contiguous."""
    mixing: MixingSettings = NO_MIXING
    """Mixing of training samples. Where it is on, `share` keeps its units together."""
    normalisation: Normalisation | None = None
    """Normalisation to take where it would be computed from the training images: that of a network to evaluate."""
    phases: tuple[Phase, ...] = ()
    """Phases of training, where it has several or a size of images of its own: then they say the global batch."""

    @property
    def training(self) -> Phases:
        """The phases of training, one if there is no schedule."""
        return self.phases or (Phase(0, self.global_batch),)


@dataclass(frozen=True)
class SplitSize:
    """Amount of data to train or to evaluate on."""

    samples: int
    classes: int
    """Classes with at least one sample."""


@dataclass(frozen=True)
class Data:
    """The pipelines of a run."""

    train: TrainPipeline
    test: EvaluationPipeline | None
    """None if the data set has no test data; then `validation` is there."""
    validation: EvaluationPipeline | None = None
    """Data to choose the best epoch by: the data set's own, or held-out training samples. None if there is neither."""
    train_evaluation: EvaluationPipeline | None = None
    """The training samples, each once, as evaluation sees them; None unless requested."""
    class_names: tuple[str, ...] = ()
    """Names by label; empty if the classes have no names."""
    normalisation: Normalisation | None = None
    """Normalisation that was applied to the grey levels."""
    sizes: Mapping[str, SplitSize] = field(default_factory=dict)
    """Sizes of "train", "validation" and "test", as far as they exist."""

    @property
    def evaluated_on(self) -> dict[str, str]:
        """Listings of validation and test, as far as they exist."""
        both = {"validation": self.validation, "test": self.test}
        return {name: pipeline.listing for name, pipeline in both.items() if pipeline is not None}

    def close(self) -> None:
        """End all threads and processes."""
        for pipeline in (self.train, self.test, self.validation, self.train_evaluation):
            if pipeline is not None:
                pipeline.close()
