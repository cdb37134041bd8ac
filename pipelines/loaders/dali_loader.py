"""Batches through NVIDIA DALI: decoded and transformed in its threads or on the GPU, in the order of a stream."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali import __cuda_version__ as BUILT_FOR  # noqa: N812

from pipelines.base import Batch
from pipelines.common.errors import UserError
from pipelines.decoding import Decoding, Place
from pipelines.images.encoded import Bytes, most_bytes
from pipelines.images.headers import Header, checked
from pipelines.images.reference import decoded
from pipelines.loaders import dali_timing, dali_views
from pipelines.loaders.base import BadSamples, Feed, Loader, Stream
from pipelines.loaders.dali_gpu import require_served
from pipelines.loaders.dali_images import given, is_large, size_of
from pipelines.loaders.dali_probe import Probe, to_torch
from pipelines.loaders.dali_views import Normaliser, made, on_gpu
from pipelines.loaders.finishing import Finishing, device_of
from pipelines.order import Indices, Uniforms
from pipelines.sources.base import Arrays, Encoded
from pipelines.views import Recipe, View

log = logging.getLogger(__name__)

_NOTHING = np.frombuffer(b"P6\n1 1\n255\n\0\0\0", dtype=np.uint8)
"""An image in place of a bad one: its batch is never delivered."""


@dataclass(frozen=True)
class DaliLoader(Loader):
    """One graph for CPU and GPU. Random numbers come from the order, none from DALI."""

    refused: set[str] = field(default_factory=set)
    """Names of good samples that DALI cannot decode."""
    large: Lock = field(default_factory=Lock, compare=False)
    """Lock that is held while a large image is made: there is memory for one."""
    faster: list[Place] = field(default_factory=list, compare=False)
    """The place that `decoding.place: auto` has come to mean, once a feed has measured it."""

    def __post_init__(self) -> None:
        if self.device_id is not None:
            require_served(self.device_id, BUILT_FOR)
        elif self.decoding.place == "gpu":
            raise UserError("data.decode is gpu, and this run has no GPU: leave it out, or set it to auto")

    def feed(self, recipe: Recipe, stream: Stream, batch: int) -> Feed:
        if self.decoding.place != "auto":
            return DaliFeed(self, recipe, stream, batch)
        return DaliFeed(self._decided(recipe, batch), recipe, stream, batch)

    def _decided(self, recipe: Recipe, batch: int) -> DaliLoader:
        """Return a loader that decodes where it is faster, as its first feed finds. The others follow it."""
        if not self.faster:
            self.faster.append(self._measured(recipe, batch))
        return self._at(self.faster[0])

    def _measured(self, recipe: Recipe, batch: int) -> Place:
        """Measure where images are decoded faster. Nothing is measured without a GPU or without encoded images."""
        if self.device_id is None or not isinstance(recipe.source, Encoded):
            return "cpu"

        def feed(place: Place) -> Feed:
            return self._at(place).feed(recipe, dali_timing.batches(recipe, batch), batch)

        return dali_timing.faster(feed, device_of(self))

    def _at(self, place: Place) -> DaliLoader:
        """Return a loader that decodes there, and is this one in all else."""
        return replace(self, decoding=replace(self.decoding, place=place))

    def given(self, source: Encoded, index: int, view: View, *numbers: Any) -> tuple[Bytes, bool]:
        """Return the bytes for DALI, and True if their view is made already. Raises as reading and decoding do."""
        content, header = self._read(source, index)
        if not is_large(size_of(content, header)):
            return self._as_file(source, index, content, header), False
        with self.large:
            image = decoded(content, self.most_pixels, header)
            from pipelines.loaders import dali_large  # Only here: most runs do not need torchvision's transforms.

            return dali_large.given(view, image, *numbers), True

    def refuses(self, source: Encoded, index: int) -> bool:
        """Return True if DALI cannot decode a good sample. Then it is decoded for DALI from now on."""
        name = source.name(index)
        content, header = self._read(source, index)
        if name in self.refused or is_large(size_of(content, header)):
            return False
        if self._probe.pixels(self._as_file(source, index, content, header)) is not None:
            return False
        log.warning("%s is decoded by Pillow: DALI cannot, though nothing is wrong with it", name)
        self.refused.add(name)
        return True

    def _read(self, source: Encoded, index: int) -> tuple[Bytes, Header]:
        content = source.encoded(index, most_bytes(self.most_pixels))
        return content, checked(content, self.most_pixels)

    def _as_file(self, source: Encoded, index: int, content: Bytes, header: Header) -> Bytes:
        as_it_is = source.name(index) not in self.refused
        return given(content, self.most_pixels, as_it_is=as_it_is, header=header)

    @cached_property
    def _probe(self) -> Probe:
        return Probe(self.device_id, self.decoding)


@dataclass(frozen=True)
class _Given:
    """A batch in flight: DALI has not delivered it yet."""

    indices: Indices
    uniforms: Uniforms
    faults: dict[int, str]


class DaliFeed(Feed):
    """DALI's pipeline over a stream."""

    def __init__(self, loader: DaliLoader, recipe: Recipe, stream: Stream, batch: int) -> None:
        self._loader, self._recipe, self._stream, self._batch = loader, recipe, stream, batch
        self._in_flight: deque[_Given] = deque()
        self._reader = ThreadPoolExecutor(loader.threads) if isinstance(recipe.source, Encoded) else None
        self._error: BaseException | None = None
        self._finished = Finishing(loader, recipe)
        self._start()

    def _start(self) -> None:
        again = [(batch.indices, batch.uniforms) for batch in list(self._in_flight)]
        self._in_flight.clear()
        batches = (self._given(*numbers) for numbers in chain(again, self._stream))
        self._batches: Generator[Any, None, None] | _Ahead = batches if self._reader is None else _Ahead(batches)
        loader = self._loader
        self._pipeline: Pipeline = _graph(
            self._batches,
            self._recipe,
            self._normaliser(),
            loader.decoding,
            batch_size=self._batch,
            num_threads=loader.threads,
            device_id=loader.device_id,
        )
        self._pipeline.build()

    def next(self) -> Batch:
        while True:
            try:
                images, labels = self._run()
                break
            except Exception:
                if self._error is not None:
                    raise self._error from None
                if not self._found_refused():
                    raise  # All samples are good: it is another error.
                del self._pipeline  # It cannot be used after an error.
                self._batches.close()
                self._start()
        given = self._in_flight.popleft()
        if given.faults:
            raise BadSamples(given.faults)
        tensor = to_torch(images)
        if self._loader.channels_last:
            tensor = tensor.permute(0, 3, 1, 2)
        return self._finish(tensor, given.uniforms), to_torch(labels)

    def _normaliser(self) -> Normaliser:
        """Return the end of the graph. Operations on pixels come before the normalisation: it is not done there."""
        channels_last = self._loader.channels_last
        if self._recipe.pixels.policies:
            return Normaliser(None, half=False, channels_last=channels_last)
        return Normaliser(self._recipe.normalisation, half=self._loader.half, channels_last=channels_last)

    def _finish(self, images: torch.Tensor, uniforms: Uniforms) -> torch.Tensor:
        _, uniforms = self._recipe.split(uniforms)
        if self._recipe.pixels.policies:
            return self._finished.of_grey_levels(images, uniforms)
        return self._finished.of_normalised(images, uniforms)

    def _run(self) -> Any:
        device_id = self._loader.device_id
        # On a GPU, run on torch's stream: then DALI neither waits, nor reuses memory too early.
        return self._pipeline.run(None if device_id is None else torch.cuda.current_stream(device_id))

    def close(self) -> None:
        self._batches.close()
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)
        del self._pipeline  # Now, not when Python collects the reference cycle of pipeline and reader.

    def _given(self, indices: Indices, uniforms: Uniforms) -> tuple[Any, ...]:
        """Return the inputs of DALI's graph for a batch."""
        source, view = self._recipe.source, self._recipe.view
        numbers = view.numbers(self._recipe.split(uniforms)[0])
        faults: dict[int, str] = {}
        images: Any
        if isinstance(source, Arrays):
            images = source.images[indices]
        else:
            assert self._reader is not None
            # A task for each image would cost as much again.
            parts = np.array_split(np.arange(len(indices)), 4 * self._loader.threads)
            rows = list(zip(indices.tolist(), *numbers, strict=True)) if numbers else [(i,) for i in indices.tolist()]
            tasks = self._reader.map(lambda part: [self._image(*rows[place]) for place in part.tolist()], parts)
            images = []
            for place, (image, is_made) in enumerate(found for part in tasks for found in part):
                if isinstance(image, str):
                    faults[int(indices[place])], image = image, _NOTHING
                if is_made:
                    for array in numbers:
                        array[place] = 0
                images.append(image)
        self._in_flight.append(_Given(indices, uniforms, faults))
        return (images, *numbers, source.labels[indices])

    def _image(self, index: int, *numbers: Any) -> tuple[Bytes | str, bool]:
        """Return the bytes for DALI, or why the sample is bad, and True if the view is made already."""
        source = self._recipe.source
        assert isinstance(source, Encoded)
        try:
            given = partial(self._loader.given, source, index, self._recipe.view, *numbers)
            made = self._loader.made(source, index, given)
            return (made, False) if isinstance(made, str) else made
        except Exception as error:
            self._error = error  # DALI may raise it as another type.
            raise

    def _found_refused(self) -> bool:
        """Return True if there are good samples that DALI cannot decode. Raises BadSamples if there are bad ones.

        A failed pipeline names no sample, so each sample in flight is examined.
        """
        source = self._recipe.source
        if not isinstance(source, Encoded):
            return False
        batches = list(self._in_flight)  # A copy: another thread reads ahead.
        for batch in batches:
            faults = {int(index): self._loader.fault(source, int(index)) for index in batch.indices}
            if bad := {index: fault for index, fault in faults.items() if fault is not None}:
                raise BadSamples(bad) from None
        found = [self._loader.refuses(source, int(index)) for batch in batches for index in batch.indices]
        return any(found)


class _Ahead:
    """Batches, each made in another thread while the previous one is used.

    Dropped without `close`, its thread ends by itself. Nobody waits for that: Python may collect it anywhere, even
    where a lock is held that the end of a thread needs. So it is no generator, whose end would wait.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches, self._pool = batches, ThreadPoolExecutor(1)
        self._coming: Future[Any] | None = None

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self) -> Any:
        coming = self._coming or self._made()
        if (batch := coming.result()) is _END:
            raise StopIteration
        self._coming = self._made()
        return batch

    def _made(self) -> Future[Any]:
        return self._pool.submit(next, self._batches, _END)

    def close(self) -> None:
        """End the thread, and wait for the batch that it makes."""
        self._pool.shutdown(cancel_futures=True)


_END = object()


# exec_dynamic: outputs stay valid while the next batch is made.
@pipeline_def(exec_dynamic=True)  # type: ignore[untyped-decorator]
def _graph(samples: Iterator[Any], recipe: Recipe, normalised: Normaliser, decoding: Decoding) -> Any:
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
    pixels = dali_views.Decoded(image) if in_memory else dali_views.Encoded(image, decoding)
    return made(recipe.view, pixels, normalised, *others), labels.gpu() if on_gpu() else labels


THE_LOADER = DaliLoader
