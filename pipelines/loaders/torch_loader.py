"""Batches through torch's DataLoader and torchvision's transforms, for where DALI does not install.

DALI's loader is tested against this one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from threading import Thread, Timer
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.base import Batch
from pipelines.common.errors import UserError
from pipelines.common.processes import clean_processes
from pipelines.common.signals import undisturbed
from pipelines.images.encoded import most_bytes
from pipelines.images.reference import decoded
from pipelines.loaders.base import BadSamples, Feed, Loader, Stream
from pipelines.loaders.finishing import Finishing
from pipelines.loaders.torch_views import made, of_arrays
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
            batches = iter(
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
        self._batches: list[Iterator[Any]] = [batches]  # The only reference, so that `close` ends the processes.
        # A feed that is dropped is closed too. Collected in a cycle, a queue would be closed before the iterator could
        # end its processes, and torch would wait for each of them for ten seconds.
        self._end = finalize(self, self._batches.clear)
        self._finished = Finishing(loader, recipe)

    def next(self) -> Batch:
        images, labels, faults, error, uniforms = next(self._batches[0])
        if error is not None:
            raise error
        if faults:
            raise BadSamples(faults)
        device = self._finished.device  # A GPU if there is one: uint8 takes a quarter of the time to copy.
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (images, labels))
        return self._finished.of_grey_levels(images, uniforms.numpy()), labels

    def close(self) -> None:
        self._end()


@cache
def _processes() -> Any:
    return clean_processes(["__main__", __name__])


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
    """Whole batches by key.

    A batch is images [batch, channels, height, width], labels, faults by sample, a fatal error, and the random numbers
    that are still to be used, float64 [batch, k].
    """

    def __init__(self, loader: TorchLoader, recipe: Recipe) -> None:
        self._loader, self._recipe = loader, recipe

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, dict[int, str], UserError | None, Tensor]:
        _, uniforms = self._recipe.split(key[1])
        try:
            return (*self._batch(key), None, torch.from_numpy(uniforms.copy()))
        except UserError as error:  # Raised in another process, its message would hold a traceback.
            # A new error: the old one's context holds the image, and memory may be short.
            return torch.empty(0), torch.empty(0), {}, UserError(str(error)), torch.empty(0)

    def _batch(self, key: Key) -> tuple[Tensor, Tensor, dict[int, str]]:
        indices, (uniforms, _) = key[0], self._recipe.split(key[1])
        source, view = self._recipe.source, self._recipe.view
        labels = torch.from_numpy(source.labels[indices])
        if isinstance(source, Arrays):
            return of_arrays(source, view, indices, uniforms), labels, {}
        assert isinstance(source, Encoded)
        rows = zip(indices.tolist(), *view.numbers(uniforms), strict=True) if view.uniforms else zip(indices.tolist())
        images: list[Tensor] = []
        faults: dict[int, str] = {}
        for index, *numbers in rows:
            image = self._loader.made(source, index, partial(self._image, source, index, numbers))
            if isinstance(image, str):
                faults[index] = image
            else:
                images.append(image)
        batch = torch.stack(images) if not faults else torch.empty(0)
        return batch, labels, faults

    def _image(self, source: Encoded, index: int, numbers: Sequence[Any]) -> Tensor:
        most = self._loader.most_pixels
        return made(self._recipe.view, decoded(source.encoded(index, most_bytes(most)), most), *numbers)


THE_LOADER = TorchLoader
