"""Data sets that fit into memory: arrays go through DALI's `external_source`, in our order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.base import Batch, Data, Request
from pipelines.config import DataError
from pipelines.order import Indices, evaluation_batches


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [n, height, width, channels] with labels int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.dtype == np.int64 and self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Transform:
    """What DALI does with an image: resize to (height, width) if set, then (x - mean) / std in grey levels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None


class _Feed:
    """DALI's pipeline over a stream of index arrays. The stream may be endless; DALI reads it ahead."""

    def __init__(
        self,
        arrays: Arrays,
        transform: Transform,
        stream: Iterator[Indices],
        batch: int,
        threads: int,
        request: Request,
    ) -> None:
        samples = ((arrays.images[indices], arrays.labels[indices]) for indices in stream)
        self._pipeline: Pipeline = _graph(
            samples, transform, batch_size=batch, num_threads=threads, device_id=request.device_id
        )
        self._pipeline.build()
        self._device_id = request.device_id

    def next(self) -> Batch:
        # On a GPU in the order of torch's stream: DALI then waits for neither, nor reuses memory too early.
        on_gpu = self._device_id is not None
        images, labels = self._pipeline.run(torch.cuda.current_stream(self._device_id) if on_gpu else None)
        return _to_torch(images), _to_torch(labels)


def _to_torch(tensors: Any) -> torch.Tensor:
    """DALI's tensor list as a torch tensor, without a copy: DALI leaves the memory alone as long as it is held."""
    return torch.utils.dlpack.from_dlpack(tensors.as_tensor())


# exec_dynamic: outputs that live on while the next batch is made.
@pipeline_def(exec_dynamic=True)  # type: ignore[untyped-decorator]
def _graph(samples: Iterator[Any], transform: Transform) -> Any:
    images, labels = fn.external_source(
        source=samples,
        num_outputs=2,
        batch=True,
        dtype=[types.UINT8, types.INT64],
        ndim=[3, 0],
        layout=["HWC", ""],
    )
    if Pipeline.current().device_id is not None:
        images, labels = images.gpu(), labels.gpu()
    if transform.size is not None:
        images = fn.resize(images, size=transform.size, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
    images = fn.crop_mirror_normalize(
        images, dtype=types.FLOAT, output_layout="CHW", mean=list(transform.mean), std=list(transform.std)
    )
    return images, labels


class InMemoryTraining:
    """A `TrainPipeline` over arrays. Its position is all its state: DALI draws nothing at random here."""

    def __init__(self, arrays: Arrays, transform: Transform, threads: int, request: Request) -> None:
        self._order = request.order(len(arrays))
        self._share = request.share
        self._epoch, self._batch = 0, 0
        micro_batch = request.global_batch // (request.share.workers * request.share.micro_batches)
        self._new_feed: Callable[[], _Feed] = lambda: _Feed(
            arrays, transform, self._stream(), micro_batch, threads, request
        )
        self._feed: _Feed | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self._order.batches_per_epoch

    def _stream(self) -> Iterator[Indices]:
        """Micro-batches from the current position on, for ever."""
        epoch, batch = self._epoch, self._batch
        while True:
            while batch < self.steps_per_epoch:
                for part in range(self._share.micro_batches):
                    yield self._order.micro_batch(epoch, batch, part, self._share)
                batch += 1
            epoch, batch = epoch + 1, 0

    def epoch(self) -> Iterator[list[Batch]]:
        while self._batch < self.steps_per_epoch:
            self._feed = self._feed or self._new_feed()
            step = [self._feed.next() for _ in range(self._share.micro_batches)]
            self._batch += 1
            yield step
        self._epoch, self._batch = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        order = self._order
        data = {"seed": order.seed, "samples": order.size, "global_batch": order.global_batch}
        return {**data, "epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ours = self.state_dict()
        for key in ("seed", "samples", "global_batch"):
            if state[key] != ours[key]:
                raise DataError(
                    f"the checkpoint was made with {key} {state[key]}, this run has {ours[key]}; "
                    f"the position in an epoch means other samples: resume with the same"
                )
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._feed = None  # What DALI has read ahead is of the old position.


class InMemoryEvaluation:
    """An `EvaluationPipeline` over arrays."""

    def __init__(self, arrays: Arrays, transform: Transform, threads: int, request: Request) -> None:
        self.samples = len(arrays)
        share = request.share
        self._batches = evaluation_batches(len(arrays), request.evaluation_batch, share.rank, share.workers)
        self._feed: _Feed | None = None
        if self._batches:
            batch = max(len(indices) for indices in self._batches)
            self._feed = _Feed(arrays, transform, self._stream(), batch, threads, request)

    def _stream(self) -> Iterator[Indices]:
        while True:
            yield from self._batches

    def batches(self) -> Iterator[Batch]:
        for _ in self._batches:
            assert self._feed is not None
            yield self._feed.next()


def in_memory(train: Arrays, test: Arrays, transform: Transform, threads: int, request: Request) -> Data:
    """The pipelines of a data set that fits into memory."""
    return Data(
        train=InMemoryTraining(train, transform, threads, request),
        test=InMemoryEvaluation(test, transform, threads, request),
    )
