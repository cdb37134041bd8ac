"""Sources: numbered samples with labels. Views (views.py) say what is made of them, loaders make it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipelines.images.encoded import Bytes


class Numbered(Protocol):
    """A numbered set of samples of known classes."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [samples]: the samples' classes, counted from 0."""
        ...

    @property
    def listing(self) -> str | None:
        """Digest of which sample has which number; it gives a position in an order its meaning."""
        ...


class Source(Numbered, Protocol):
    """A numbered set of labelled images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; empty if the classes have no names."""
        ...

    @property
    def listing(self) -> str: ...

    def name(self, index: int) -> str:
        """Return the name of a sample in messages and in `data.exclude`, such as `train/ape/001.jpg`."""
        ...


@runtime_checkable
class Encoded(Source, Protocol):
    """Images that are still to be decoded."""

    def encoded(self, index: int, most: int = ...) -> Bytes:
        """Return the file's content. Any thread or process may call it.

        Raises OSError, without waiting for a pipe, if it cannot be read or takes more than `most` bytes.
        """
        ...

    def reopen(self) -> None:
        """Close files that are kept open: the system may have given them up."""
        ...


@dataclass(frozen=True)
class Arrays:
    """A `Source` in memory: images uint8 [n, height, width, channels] with labels int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()
    listed_shape: tuple[int, ...] | None = None
    """Shape of an image that `listing` tells, for images that are padded or not as settings say; None: their own."""
    earlier_shape: tuple[int, ...] | None = None
    """Another shape, which the listings of older checkpoints may tell."""

    def __post_init__(self) -> None:
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.dtype == np.int64 and self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def listing(self) -> str:
        return listing_of_arrays(self.listed_shape or self.images.shape[1:], self.labels)

    @property
    def earlier_listing(self) -> str | None:
        """`listing` as older versions gave it, if it was another."""
        return None if self.earlier_shape is None else listing_of_arrays(self.earlier_shape, self.labels)

    def name(self, index: int) -> str:
        return f"image {index}"


@dataclass(frozen=True)
class Listed:
    """Labels and listing of a `Source` without its images: enough to know the order of training."""

    labels: NDArray[np.int64]
    listing: str | None
    """None if it is unknown until the data are fetched."""
    earlier_listing: str | None = None


def listing_of_arrays(shape: tuple[int, ...], labels: NDArray[np.int64]) -> str:
    """Return the `listing` of images of this shape, (height, width, channels), with labels int64 [n]."""
    return digest(str(tuple(shape)).encode(), labels.tobytes())


def digest(*parts: bytes | memoryview) -> str:
    """Return a checksum of the parts, of 16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()
