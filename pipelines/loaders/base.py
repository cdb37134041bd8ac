"""The contract of a loader, which reads, decodes and transforms: DALI, or torchvision in torch's DataLoader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pipelines.base import Batch
from pipelines.common.errors import UserError
from pipelines.decoding import BY_DEFAULT, Decoding
from pipelines.order import Indices, Uniforms
from pipelines.sources.base import Encoded
from pipelines.views import Recipe

Made = TypeVar("Made")
Stream = Iterator[tuple[Indices, Uniforms]]
"""Batches: indices of samples, and random numbers float64 [batch, all of recipe.streams].

It may be endless, and is read ahead.
"""


class BadSamples(Exception):  # noqa: N818 - samples are bad, not the program
    """Bad samples of the next batch, each with the reason. The feed has ended."""

    def __init__(self, faults: Mapping[int, str]) -> None:
        super().__init__(faults)
        self.faults = dict(faults)


class Feed(ABC):
    """Batches that are made from a stream, one after another."""

    @abstractmethod
    def next(self) -> Batch:
        """Return the next batch. Raises BadSamples, or UserError if memory is short."""

    @abstractmethod
    def close(self) -> None:
        """End threads and processes."""


@dataclass(frozen=True)
class Loader(ABC):
    """Makes feeds."""

    threads: int
    """Threads or processes of each feed."""
    device_id: int | None
    """Index of the GPU that batches are delivered on; None for the CPU."""
    half: bool
    """True for half precision, else float32."""
    channels_last: bool
    """Memory layout of images: channels last instead of contiguous."""
    most_pixels: int
    """Images of more pixels are bad samples."""
    decoding: Decoding = BY_DEFAULT
    """The place where DALI decodes."""

    @abstractmethod
    def feed(self, recipe: Recipe, stream: Stream, batch: int) -> Feed:
        """Return a feed. `batch`: samples in the largest batch of the stream."""

    def fault(self, source: Encoded, index: int) -> str | None:
        """Read a sample and decode all of it. Return why that fails, or None: the same for every loader."""
        try:
            from pipelines.sources.faults import fault  # Only here: a config is validated without Pillow.

            return fault(source, index, self.most_pixels)
        except MemoryError:
            raise no_memory(source, index) from None

    def made(self, source: Encoded, index: int, make: Callable[[], Made]) -> Made | str:
        """Return what `make` makes of a sample, or why the sample is bad. Raises UserError as `fault` does.

        A sample that could not be read for a moment is made once more.
        """
        try:
            return make()
        except MemoryError:
            raise no_memory(source, index) from None
        except Exception as error:
            if (fault := self.fault(source, index)) is not None:
                return fault
            if not isinstance(error, OSError) or error.errno is None:
                raise  # The image is good: it is another error.
        try:
            return make()
        except MemoryError:
            raise no_memory(source, index) from None
        except OSError as error:
            raise UserError(
                f"{source.name(index)} can be read at one time and not at another ({error.strerror}); mend its "
                "storage, and resume"
            ) from None


def no_memory(source: Encoded, index: int) -> UserError:
    """Return the error for too little memory. It is not the image's fault: too large images are bad samples."""
    return UserError(
        f"{source.name(index)}: no memory is left to decode it; lower data.threads, data.most_pixels or the batch"
    )
