"""Batches through torch's DataLoader and torchvision's transforms, for where DALI does not install.

DALI's loader is tested against this one.
"""

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
"""Seconds between SIGTERM and the end of a process, in which the trainer saves and stops."""


class TorchLoader(Loader):
    """A loader whose `threads` are processes."""

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
                    generator=torch.Generator(),  # Without it, each new feed would draw from the run's generator.
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
        """Normalise a whole batch, on the GPU if there is one: uint8 takes a quarter of the time to copy."""
        if self._loader.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        normalised = images.float().sub_(self._mean).div_(self._std)
        return normalised.half() if self._loader.half else normalised

    def close(self) -> None:
        self._batches = iter(())  # This ends the processes of the old iterator.


@cache
def _processes() -> Any:
    """Return a context that starts processes without a fork: a forked one could wait for a lock of another thread."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])  # Imported once, by the server.
    return context


class _Undisturbed:
    """The first act of each process: handle SIGTERM late, and end with the trainer.

    The trainer answers signals to the whole group, such as a terminal's Ctrl-C: it still needs batches to save and
    stop. If the trainer is killed, nobody else ends these processes: torch watches their parent, which is the server.
    """

    def __init__(self, trainer: int) -> None:
        self._trainer = trainer

    def __call__(self, _: int) -> None:
        # Python ends its children by SIGTERM, so it must work in the end. Other signals stay blocked (`undisturbed`).
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
    """A stream as a sampler for DataLoader."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Key]:
        return self._stream


class _Batches(Dataset[Any]):
    """Whole batches by key: images [batch, channels, height, width], labels, faults by sample, and a fatal error."""

    def __init__(self, loader: TorchLoader, recipe: Recipe) -> None:
        self._loader, self._recipe = loader, recipe

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, dict[int, str], UserError | None]:
        try:
            return (*self._batch(key), None)
        except UserError as error:  # Raised in another process, its message would hold a traceback.
            # A new error: the old one's context holds the image, and memory may be short.
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
                    raise  # The image is good: it is another error.
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
