"""The place where DALI decodes photographs, and how large ones a GPU has memory for from the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["gpu", "cpu", "auto"]
LARGEST_OF_IMAGENET = (5980, 6430)
"""Width and height that hold each image of ImageNet's training set."""


@dataclass(frozen=True)
class Decoding:
    """The choice of a decoder."""

    place: Place | None = None
    """gpu, cpu; auto: the faster, as each worker measures at the start; None: the GPU if the worker has one."""
    largest: tuple[int, int] = LARGEST_OF_IMAGENET
    """(width, height) in pixels that a GPU's decoder has memory for from the start. Larger images make it grow."""


BY_DEFAULT = Decoding()
