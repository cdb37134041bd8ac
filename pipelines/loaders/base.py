"""Who reads, decodes and transforms: DALI, or torchvision in torch's DataLoader. Both do as the order says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.base import Batch
from pipelines.common.errors import UserError
from pipelines.order import Indices, Uniforms
from pipelines.sources.base import Encoded
from pipelines.views import Recipe

Stream = Iterator[tuple[Indices, Uniforms]]
"""Batches: which samples, and random numbers float64 [batch, view.uniforms]. May be endless; it is read ahead."""


class BadSamples(Exception):  # noqa: N818 - samples are bad, not the program
    """Samples of the batch to come that cannot be had, each with the reason. The feed is at its end."""

    def __init__(self, faults: Mapping[int, str]) -> None:
        super().__init__(faults)
        self.faults = dict(faults)


class Feed(ABC):
    """Batches made from a stream, one after the other."""

    @abstractmethod
    def next(self) -> Batch:
        """Raises BadSamples."""

    @abstractmethod
    def close(self) -> None:
        """Let threads and processes go."""


@dataclass(frozen=True)
class Loader(ABC):
    """Makes feeds.

    `threads` of each feed; `device_id`: index of the GPU that batches are to
    be on, None for the CPU; images in `half` precision, and in memory channels
    last, or else float32 and contiguous. Images of more than `most_pixels` are
    bad samples.
    """

    threads: int
    device_id: int | None
    half: bool
    channels_last: bool
    most_pixels: int

    @abstractmethod
    def feed(self, recipe: Recipe, stream: Stream, batch: int) -> Feed:
        """`batch`: the samples in the largest batch of the stream."""

    def fault(self, source: Encoded, index: int) -> str | None:
        """Why a sample cannot be had, or None: the same words whoever loads. Reads it and decodes all of it."""
        from pipelines.sources.faults import fault  # Only here: a config is validated without Pillow.

        try:
            return fault(source, index, self.most_pixels)
        except MemoryError:
            raise no_memory(source, index) from None


def no_memory(source: Encoded, index: int) -> UserError:
    """It is not the image's fault: those that are too large are bad samples."""
    return UserError(
        f"{source.name(index)}: no memory is left to decode it; lower data.threads, data.most_pixels or the batch"
    )
