"""Rounds of operations on a batch of images: all images with the same operation at once, on their device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.pixels import levels
from pipelines.pixels.blending import BLENDING, hue
from pipelines.pixels.policies import Round
from pipelines.pixels.tables import Operation
from pipelines.pixels.warping import matrix, warped

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Takes uint8 [n, channels, height, width] and arguments float64 [n, 6], and returns images of the same shape."""


def _blend(kernel: Kernel) -> Kernel:
    """Return a kernel whose arguments are distances from a factor of 1."""
    return lambda images, arguments: kernel(images, 1 + _column(arguments))


def _plain(kernel: Kernel) -> Kernel:
    return lambda images, arguments: kernel(images, _column(arguments).float())


def _column(arguments: Tensor) -> Tensor:
    """Return the first argument of each image, float64 [n, 1, 1, 1]."""
    return arguments[:, 0].view(-1, 1, 1, 1)


KERNELS: dict[int, Kernel] = {
    Operation.ROTATE: warped,
    **{operation: _blend(kernel) for operation, kernel in BLENDING.items()},
    Operation.POSTERIZE: _plain(levels.posterize),
    Operation.SOLARIZE: _plain(levels.solarize),
    Operation.AUTO_CONTRAST: _plain(levels.auto_contrast),
    Operation.EQUALIZE: _plain(levels.equalize),
    Operation.HUE: _plain(hue),
}
"""Kernels by operation. That of ROTATE serves all operations that move pixels: they differ in their matrix."""


IN_CACHE = 1 << 18
"""Grey levels that a CPU works on at once. With a whole group it would wait for memory, half of the time."""


def applied(images: Tensor, rounds: Iterator[Round]) -> Tensor:
    """Return the images after all rounds: uint8 [batch, channels, height, width], in memory of their own."""
    images = images.clone()
    for operations, magnitudes in rounds:
        _apply(images, operations, magnitudes)
    return images


def _apply(images: Tensor, operations: NDArray[np.int64], magnitudes: NDArray[np.float64]) -> None:
    """Change the images. Groups are known here, so nothing waits for a GPU; two copies bring it all numbers."""
    kernels = np.where(_moving(operations), Operation.ROTATE, operations)
    order = np.argsort(kernels, kind="stable")
    device = images.device
    places = torch.from_numpy(order).to(device, non_blocking=True)
    arguments = torch.from_numpy(_arguments(operations, magnitudes, images)[order]).to(device, non_blocking=True)
    found, starts = np.unique(kernels[order], return_index=True)
    for kernel, start, end in zip(found.tolist(), starts, [*starts[1:], len(order)], strict=True):
        if kernel != Operation.IDENTITY:
            for part in _parts(start, end, images):
                group = places[part]
                images.index_copy_(0, group, KERNELS[kernel](images[group], arguments[part]))


def _parts(start: int, end: int, images: Tensor) -> list[slice]:
    """Cut a group into parts that fit into a processor's cache; a GPU gets all at once."""
    size = end - start if images.is_cuda else max(1, IN_CACHE // images[0].numel())
    return [slice(first, min(first + size, end)) for first in range(start, end, size)]


def _arguments(operations: NDArray[np.int64], magnitudes: NDArray[np.float64], images: Tensor) -> NDArray[np.float64]:
    """Return float64 [batch, 6]: the matrix of an operation that moves pixels, or the magnitude and zeros."""
    height, width = images.shape[-2:]
    arguments = np.zeros((len(operations), 6))
    arguments[:, 0] = magnitudes
    for place in np.flatnonzero(_moving(operations)):
        arguments[place] = matrix(int(operations[place]), float(magnitudes[place]), height, width)
    return arguments


def _moving(operations: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return True for operations that move pixels, like `operations`."""
    found: NDArray[np.bool_] = (operations > Operation.IDENTITY) & (operations <= Operation.ROTATE)
    return found
