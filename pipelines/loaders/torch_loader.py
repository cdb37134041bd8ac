"""Batches through torch's DataLoader and torchvision's transforms: where DALI does not install, and its yardstick."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from functools import cache
from threading import Thread, Timer
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.base import Batch
from pipelines.common.errors import UserError
from pipelines.common.signals import undisturbed
from pipelines.images.encoded import most_bytes
from pipelines.images.reference import decoded
from pipelines.loaders.base import BadSamples, Feed, Loader, Stream, no_memory
from pipelines.loaders.torch_views import made
from pipelines.order import Indices, Uniforms
from pipelines.sources.base import Arrays, Encoded
from pipelines.views import Recipe

Key = tuple[Indices, Uniforms]
GRACE_SECONDS = 30
"""Between SIGTERM and the end of a process: time for the trainer to save and stop."""


class TorchLoader(Loader):
    """`threads` are processes here."""

    def feed(self, recipe: Recipe, stream: Stream, batch: int) -> Feed:
        return TorchFeed(self, recipe, stream)


class TorchFeed(Feed):
    """A DataLoader whose keys are the batches of a stream."""

    def __init__(self, loader: TorchLoader, recipe: Recipe, stream: Stream) -> None:
        # Arrays need no decoding: processes would cost more than they save.
        workers = 0 if isinstance(recipe.source, Arrays) else loader.threads
        self._loader = loader
        with undisturbed():
            self._batches: Iterator[Any] = iter(
                DataLoader(
                    _Batches(loader, recipe),
                    batch_size=None,  # A key is a whole batch.
                    sampler=_Stream(stream),
                    num_workers=workers,
                    multiprocessing_context=_processes() if workers else None,
                    worker_init_fn=_Undisturbed(os.getpid()),
                    pin_memory=loader.device_id is not None,
                    generator=torch.Generator(),  # Or it would draw from the run's, each time that a feed is made.
                )
            )
        normalisation = recipe.normalisation
        self._mean, self._std = (
            torch.tensor(values, device=self._device).view(1, -1, 1, 1)
            for values in (normalisation.mean, normalisation.std)
        )

    @property
    def _device(self) -> torch.device:
        index = self._loader.device_id
        return torch.device("cpu") if index is None else torch.device("cuda", index)

    def next(self) -> Batch:
        images, labels, faults, error = next(self._batches)
        if error is not None:
            raise error
        if faults:
            raise BadSamples(faults)
        images, labels = (tensor.to(self._device, non_blocking=True) for tensor in (images, labels))
        return self._normalised(images), labels

    def _normalised(self, images: Tensor) -> Tensor:
        """Of a whole batch at once, and on the GPU where there is one: uint8 travels in a quarter of the time."""
        if self._loader.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        normalised = images.float().sub_(self._mean).div_(self._std)
        return normalised.half() if self._loader.half else normalised

    def close(self) -> None:
        self._batches = iter(())  # Which ends the processes of the old one.


@cache
def _processes() -> Any:
    """How processes start: not as copies of this one, whose threads may hold a lock that a copy would wait for."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])  # Imported once, not by each process.
    return context


class _Undisturbed:
    """What each process does first.

    A signal to the whole group, such as a terminal's Ctrl-C, is the trainer's
    to answer: it still needs its batches to save and stop. Where the trainer
    was killed nobody else ends them: torch's own watch looks at the parent,
    which is the server.
    """

    def __init__(self, trainer: int) -> None:
        self._trainer = trainer

    def __call__(self, _: int) -> None:
        # Python ends its children with this one: they must go in the end. The others stay blocked (`undisturbed`).
        signal.signal(signal.SIGTERM, lambda *_: Timer(GRACE_SECONDS, os._exit, (1,)).start())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while _is_alive(self._trainer):
            time.sleep(1)
        os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


class _Stream:
    """A sampler in DataLoader's sense."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Key]:
        return self._stream


class _Batches(Dataset[Any]):
    """Whole batches, by their keys.

    Images [batch, channels, height, width], labels, what is wrong by sample,
    and what ends the run.
    """

    def __init__(self, loader: TorchLoader, recipe: Recipe) -> None:
        self._loader, self._recipe = loader, recipe

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, dict[int, str], UserError | None]:
        try:
            return (*self._batch(key), None)
        except UserError as error:  # From another process it would come with its traceback in its words.
            # Without the old one's context, which holds the image: there may be no memory left.
            return torch.empty(0), torch.empty(0), {}, UserError(str(error))

    def _batch(self, key: Key) -> tuple[Tensor, Tensor, dict[int, str]]:
        indices, uniforms = key
        source, view = self._recipe.source, self._recipe.view
        rows = zip(indices.tolist(), *view.numbers(uniforms), strict=True) if view.uniforms else zip(indices.tolist())
        images: list[Tensor] = []
        faults: dict[int, str] = {}
        for index, *numbers in rows:
            try:
                images.append(self._image(index, numbers))
            except MemoryError:
                if not isinstance(source, Encoded):
                    raise
                raise no_memory(source, index) from None
            except Exception:
                fault = self._loader.fault(source, index) if isinstance(source, Encoded) else None
                if fault is None:
                    raise  # The image is good: the error is of another kind.
                faults[index] = fault
        batch = torch.stack(images) if not faults else torch.empty(0)
        return batch, torch.from_numpy(source.labels[indices]), faults

    def _image(self, index: int, numbers: Sequence[Any]) -> Tensor:
        source = self._recipe.source
        if isinstance(source, Arrays):
            return made(self._recipe.view, source.images[index], *numbers)
        assert isinstance(source, Encoded)
        most = self._loader.most_pixels
        return made(self._recipe.view, decoded(source.encoded(index, most_bytes(most)), most), *numbers)


THE_LOADER = TorchLoader
