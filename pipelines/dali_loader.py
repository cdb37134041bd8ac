"""Batches through NVIDIA DALI: read, decoded and transformed in its threads or on the GPU, in the order of a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines import dali_views, sources
from pipelines.base import Batch
from pipelines.dali_views import Normaliser, made, on_gpu
from pipelines.image_folder import ImageFiles
from pipelines.loaders import BadSamples, Feed, Loader, Stream, read_fault
from pipelines.order import Indices, Uniforms
from pipelines.sources import Arrays, Encoded
from pipelines.views import Recipe

_UNREADABLE = np.zeros(1, dtype=np.uint8)  # DALI will fail at it, and the search for the reason find it.


class DaliLoader(Loader):
    """One graph for CPU and GPU. Random numbers come from the order, none from DALI."""

    def feed(self, recipe: Recipe, stream: Stream, batch: int) -> Feed:
        return DaliFeed(self, recipe, stream, batch)

    def fault(self, source: Encoded, index: int) -> str | None:
        try:
            encoded = source.encoded(index)
        except OSError as error:
            return read_fault(error)
        return self._probe.fault(encoded)

    @cached_property
    def _probe(self) -> Probe:
        return Probe(self.device_id)


class DaliFeed(Feed):
    """DALI's pipeline over a stream."""

    def __init__(self, loader: DaliLoader, recipe: Recipe, stream: Stream, batch: int) -> None:
        self._loader, self._recipe = loader, recipe
        self._in_flight: deque[Indices] = deque()  # What DALI has been given and has not delivered.
        self._reader = ThreadPoolExecutor(loader.threads) if _read_here(recipe) else None
        self._pipeline: Pipeline = _graph(
            self._samples(stream),
            recipe,
            Normaliser(recipe.normalisation, half=loader.half, channels_last=loader.channels_last),
            batch_size=batch,
            num_threads=loader.threads,
            device_id=loader.device_id,
        )
        self._pipeline.build()

    def next(self) -> Batch:
        device_id = self._loader.device_id
        # On a GPU in the order of torch's stream: DALI then waits for neither, nor reuses memory too early.
        stream = None if device_id is None else torch.cuda.current_stream(device_id)
        try:
            images, labels = self._pipeline.run(stream)
        except RuntimeError:
            self._raise_bad_samples()
            raise  # All samples are good: the error is of another kind.
        self._in_flight.popleft()
        tensor = _to_torch(images)
        return (tensor.permute(0, 3, 1, 2) if self._loader.channels_last else tensor), _to_torch(labels)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)
        del self._pipeline  # Now, not when Python finds that it and what it reads from hold each other.

    def _samples(self, stream: Stream) -> Iterator[tuple[Any, ...]]:
        """What DALI is given of each batch."""
        batches = ((indices, self._given(indices, uniforms)) for indices, uniforms in stream)
        for indices, given in batches if self._reader is None else _ahead(batches):
            self._in_flight.append(indices)
            yield given

    def _given(self, indices: Indices, uniforms: Uniforms) -> tuple[Any, ...]:
        source, view = self._recipe.source, self._recipe.view
        images: Any
        if isinstance(source, Arrays):
            images = source.images[indices]
        elif isinstance(source, ImageFiles):
            images = [source.path(index) for index in indices]
        else:
            assert self._reader is not None
            images = list(self._reader.map(lambda index: _encoded(source, index), indices))
        return (images, *view.numbers(uniforms), source.labels[indices])

    def _raise_bad_samples(self) -> None:
        """A failed pipeline is dead and names no sample: look at each of the batch, or of those read ahead."""
        source = self._recipe.source
        if not isinstance(source, Encoded):
            return
        for indices in self._in_flight:
            faults = {int(index): self._loader.fault(source, int(index)) for index in indices}
            if bad := {index: fault for index, fault in faults.items() if fault is not None}:
                raise BadSamples(bad) from None


def _read_here(recipe: Recipe) -> bool:
    """Whether files are read in Python: DALI reads whole files only."""
    return isinstance(recipe.source, Encoded) and not isinstance(recipe.source, ImageFiles)


def _encoded(source: Any, index: int) -> Any:
    try:
        return source.encoded(index)
    except OSError:
        return _UNREADABLE


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, each made in another thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        end = object()
        coming = pool.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = pool.submit(next, batches, end)
            yield batch


def _to_torch(tensors: Any) -> torch.Tensor:
    """DALI's tensor list as a torch tensor, without a copy: DALI leaves the memory alone as long as it is held."""
    return torch.utils.dlpack.from_dlpack(tensors.as_tensor())


# exec_dynamic: outputs that live on while the next batch is made.
@pipeline_def(exec_dynamic=True)  # type: ignore[untyped-decorator]
def _graph(samples: Iterator[Any], recipe: Recipe, normalised: Normaliser) -> Any:
    in_memory = isinstance(recipe.source, Arrays)
    numbers = recipe.view.numbers(np.zeros((1, recipe.view.uniforms)))
    image, *others, labels = fn.external_source(
        source=samples,
        num_outputs=len(numbers) + 2,
        batch=True,
        dtype=[types.UINT8, *(types.to_dali_type(array.dtype) for array in numbers), types.INT64],
        ndim=[3 if in_memory else 1, *(array.ndim - 1 for array in numbers), 0],
        layout=["HWC" if in_memory else "", *("" for _ in numbers), ""],
    )
    if isinstance(recipe.source, ImageFiles):
        image = contents(image)
    pixels = dali_views.Decoded(image) if in_memory else dali_views.Encoded(image)
    return made(recipe.view, pixels, normalised, *others), labels.gpu() if on_gpu() else labels


def contents(paths: Any) -> Any:
    """The bytes of files. Not mapped into memory: one that shrinks while it is read would end the process (SIGBUS)."""
    return fn.io.file.read(paths, dont_use_mmap=True)


class Probe:
    """Decodes one image at a time, to find those that cannot be."""

    def __init__(self, device_id: int | None = None) -> None:
        self._device_id = device_id
        self._pipeline: Pipeline | None = None
        self._lock = Lock()  # What reads ahead looks for replacements while a failed batch is searched.

    def fault(self, encoded: sources.Bytes) -> str | None:
        """Why uint8 [bytes] cannot be decoded, or None."""
        if not len(encoded):
            return "is empty"
        with self._lock:
            return self._fault(encoded)

    def _fault(self, encoded: sources.Bytes) -> str | None:
        if self._pipeline is None:
            self._pipeline = _probe_graph(batch_size=1, num_threads=1, device_id=self._device_id)
            self._pipeline.build()
        try:
            self._pipeline.feed_input("encoded", [encoded])
            self._pipeline.run()
        except RuntimeError as error:
            self._pipeline = None  # It is dead.
            if "memory" in str(error) or "CUDA" in str(error):
                raise  # Not the image's fault.
            if "peek_image_shape" in str(error):
                return "is no image of a known format, or its header is damaged"
            return "cannot be decoded: it is truncated or damaged"
        return None


@pipeline_def(prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
def _probe_graph() -> Any:
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    image = dali_views.Encoded(encoded)
    return image.shape(), image.whole()


THE_LOADER = DaliLoader
