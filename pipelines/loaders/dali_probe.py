"""A trial of single images, to find good ones that DALI cannot decode."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.decoding import BY_DEFAULT, Decoding
from pipelines.images.encoded import Bytes
from pipelines.loaders import dali_views


def to_torch(tensors: Any) -> torch.Tensor:
    """Return DALI's tensor list as a torch tensor, without a copy: DALI does not reuse the memory while it is held."""
    return torch.utils.dlpack.from_dlpack(tensors.as_tensor())


class Probe:
    """Decodes one image at a time, to find images that DALI cannot decode."""

    def __init__(self, device_id: int | None = None, decoding: Decoding = BY_DEFAULT) -> None:
        self._device_id, self._decoding = device_id, decoding
        self._pipeline: Pipeline | None = None
        self._lock = Lock()  # The thread that reads ahead tries replacements while a failed batch is searched.

    def pixels(self, encoded: Bytes) -> NDArray[np.uint8] | None:
        """Return uint8 [height, width, 3] on the CPU; None if it cannot be decoded."""
        with self._lock:
            return self._pixels(encoded)

    def _pixels(self, encoded: Bytes) -> NDArray[np.uint8] | None:
        if self._pipeline is None:
            self._pipeline = _probe_graph(self._decoding, batch_size=1, num_threads=1, device_id=self._device_id)
            self._pipeline.build()
        try:
            self._pipeline.feed_input("encoded", [encoded])
            images = self._pipeline.run()[0]
        except RuntimeError as error:
            self._pipeline = None  # It cannot be used after an error.
            if "memory" in str(error) or "CUDA" in str(error):
                raise  # Not the image's fault.
            return None
        found: NDArray[np.uint8] = to_torch(images)[0].cpu().numpy().copy()
        return found


@pipeline_def(prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
def _probe_graph(decoding: Decoding) -> Any:
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    return dali_views.Encoded(encoded, decoding).whole()
