"""The model as one of many: which gradients travel between the ranks, and when."""

from __future__ import annotations

import inspect
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dynsparse.distributed import sync
from dynsparse.distributed.allreduce import ActiveAllReduce, Gradients
from dynsparse.masks import MaskSet

log = logging.getLogger(__name__)

_ROUNDS = 3
_WORTH_IT = 0.95  # Of a dense step's time, at most: within that the two are alike, and dense is the plainer.


class Parallel:
    """A module whose gradients are the mean over the ranks after each step. Alone it is the module."""

    def __init__(
        self,
        module: nn.Module,
        masks: MaskSet,
        gradients: Gradients,
        device: torch.device,
        bucket_mb: float | None = None,
    ) -> None:
        self.masks = masks
        self.device = device
        self.gradients = gradients
        self._module: nn.Module = module
        self._hook: ActiveAllReduce | None = None
        self._dense_bytes = 0
        self._sent = 0
        if not sync.connected():
            return
        self._module = data_parallel(module, device, bucket_cap_mb=bucket_mb)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._dense_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        if gradients != "dense":
            self._hook = ActiveAllReduce(masks)
            self._hook.register(self._module)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        logits: Tensor = self._module(images)
        return logits

    def accumulating(self) -> AbstractContextManager[object]:
        """A context of forward and backward passes whose gradients stay on this rank."""
        if not isinstance(self._module, DistributedDataParallel):
            return nullcontext()
        no_sync: AbstractContextManager[object] = self._module.no_sync()
        return no_sync

    @contextmanager
    def reducing(self, *, whole: bool) -> Iterator[None]:
        """A context of a step's last forward and backward pass, which reduces all its gradients over the ranks.

        Afterwards they are 0 outside the masks, unless `whole`.
        """
        only_active = self._hook is not None and self.gradients == "active" and not whole
        if self._hook is not None:
            self._hook.active = only_active
        yield
        if not (whole or only_active):  # The active ones come back scattered into zeros.
            self.masks.mask_gradients()

    def take_bytes_sent(self) -> int:
        """Bytes that this rank has handed to the all-reduce since the last call. Call it once a step."""
        if self._hook is None:
            return self._dense_bytes
        sent, self._sent = self._hook.bytes_sent - self._sent, self._hook.bytes_sent
        return sent

    def choose(self, step: Callable[[], object], *, before: str | None, always_whole: bool) -> None:
        """Decide what `auto` means, the same on every rank: by throw-away steps of both kinds in turn.

        Rank 0's clock decides. `before` is the choice of the run before it was interrupted on as many workers. It
        stays, for with more than two of them the two ways differ in the last bits.
        """
        if self.gradients != "auto":
            return
        if not sync.connected():
            self.gradients = "dense"
        elif before:
            self.gradients = "active" if before == "active" else "dense"
            log.info("distributed.gradients: %s, as before", before)
        elif always_whole:
            self._take("dense", "the method looks at all gradients at every step")
        elif self.masks.active_weights == self.masks.weights:
            self._take("dense", "all weights are active")
        else:
            self._time(step)

    def _take(self, choice: Literal["active", "dense"], reason: str) -> None:
        self.gradients = choice
        log.info("distributed.gradients: %s, for %s", choice, reason)

    def _time(self, step: Callable[[], object]) -> None:
        seconds: dict[Literal["active", "dense"], list[float]] = {"active": [], "dense": []}
        megabytes: dict[str, float] = {}
        for _ in range(_ROUNDS):
            for kind, times in seconds.items():
                self.gradients = kind
                sync.any_rank(False)  # All begin together.
                began = time.perf_counter()
                step()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                times.append(time.perf_counter() - began)
                megabytes[kind] = self.take_bytes_sent() / 1e6
        active, dense = sync.from_rank_0(lambda: [statistics.median(times) for times in seconds.values()])
        self._take(
            "active" if active <= _WORTH_IT * dense else "dense",
            f"a step takes {active:.3g} s with the active gradients ({megabytes['active']:.3g} MB), "
            f"{dense:.3g} s with all ({megabytes['dense']:.3g} MB)",
        )


def data_parallel(module: nn.Module, device: torch.device, **others: Any) -> DistributedDataParallel:
    """Wrap in DDP that leaves buffers alone: statistics are averaged before evaluation, not sent at every forward.

    A compiled module stays inside: its graph is then cut at the buckets, so that each travels once its part has run.
    `others` are options of DDP that add to ours or replace them.
    """
    # torch 2.13 renamed the argument.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    ours: dict[str, Any] = {
        "device_ids": [device.index] if device.type == "cuda" else None,
        "gradient_as_bucket_view": True,
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False,
    }
    return DistributedDataParallel(module, **{**ours, **others})
