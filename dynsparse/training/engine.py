"""The engine of a step: forward and backward of a global batch, and a way back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from dynsparse.config.schema import RunConfig
from dynsparse.optimizers import check_layouts
from dynsparse.runtime import Worker
from dynsparse.training import packing
from dynsparse.training.evaluate import hits
from dynsparse.training.network import Network
from dynsparse.training.parallel import Parallel
from dynsparse.training.precision import Precision
from pipelines.base import Batch


class Engine:
    """Makes gradients of batches, the same on every rank, and gives them to the optimizer or takes all back."""

    def __init__(self, config: RunConfig, network: Network, optimizer: optim.Optimizer, worker: Worker) -> None:
        self.config = config
        self.worker = worker
        self.model = network.model
        self.optimizer = optimizer
        self.device = next(self.model.parameters()).device
        self.forward: nn.Module = torch.compile(self.model) if config.train.compile else self.model  # type: ignore[assignment]
        self.parallel = Parallel(self.forward, network.masks, config.distributed.gradients, self.device)
        self.precision = Precision(config.train.precision, self.device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        """Loss, top-1 hits and samples of this rank in this epoch."""
        self._by_forward = Undo([*packing.buffers(self.model).values(), self.sums])

    def backward(self, micro_batches: Sequence[Batch], *, whole: bool) -> Tensor:
        """Leave the gradients of the mean loss over the global batch, reduced over the ranks.

        They are 0 outside the masks, unless `whole` ones are asked for. `step` or `skip` follows. Returns this
        worker's mean loss, a scalar on the device.
        """
        self._by_forward.remember()
        *others, last = micro_batches
        with self.parallel.accumulating():
            losses = [self._forward_backward(*batch) for batch in others]
        with self.parallel.reducing(whole=whole):
            losses.append(self._forward_backward(*last))
        return torch.stack(losses).sum() / sum(len(labels) for _, labels in micro_batches)

    def _forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Add a micro-batch's gradients, and its figures to the epoch's sums. Returns the sum of its losses.

        DDP takes the mean over the ranks. So each part is weighed by its samples: they need not be equally many.
        """
        train = self.config.train
        if train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast():
            logits = self.parallel(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=train.label_smoothing)
        self.precision.backward(loss / (train.global_batch_size / self.worker.world_size / len(labels)))
        loss_sum = loss.detach() * len(labels)
        self.sums[0] += loss_sum
        self.sums[1] += hits(logits.detach(), labels, 1)
        self.sums[2] += len(labels)
        return loss_sum

    def gradients_are_finite(self) -> bool:
        """Give the gradients their true size. Returns whether none is NaN or inf: the same on every rank."""
        return self.precision.unscale(self.optimizer, self.model.parameters())

    def step(self) -> None:
        """Let the optimizer step on finite gradients."""
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad()

    def skip(self) -> bool:
        """Undo what `backward` did, instead of a step. Returns whether only the loss scale may be at fault."""
        searching = self.precision.skip()
        self.optimizer.zero_grad()
        self._by_forward.restore()
        return searching

    def settle(self, *, gradients_before: str | None, always_whole: bool) -> None:
        """Make throw-away forward and backward passes. The caller restores what a forward pass changes.

        DDP lays its buckets out anew after the first backward, which changes the order of sums and so the last bits
        of gradients on more than two ranks. Settled before the first step of every start, a resumed run sums like the
        one that was never interrupted. What `distributed.gradients: auto` means is chosen here too: see
        `Parallel.choose`.
        """
        train = self.config.train
        samples = train.samples_at_once(self.worker.world_size)
        images = torch.zeros(samples, *self.config.data.image_shape, device=self.device)
        labels = torch.zeros(samples, dtype=torch.int64, device=self.device)

        def throw_away(parts: int) -> None:
            self.backward([(images, labels)] * parts, whole=False)
            check_layouts(self.model.parameters())
            self.optimizer.zero_grad()

        throw_away(1)
        self.parallel.choose(
            lambda: throw_away(train.micro_batches), before=gradients_before, always_whole=always_whole
        )
        self.parallel.take_bytes_sent()


class Undo:
    """Remembers the values of tensors that are changed in place."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._values = [tensor.clone() for tensor in self._tensors]

    @torch.no_grad()
    def remember(self) -> None:
        """Take the values of now."""
        torch._foreach_copy_(self._values, self._tensors)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the tensors the values that were remembered."""
        torch._foreach_copy_(self._tensors, self._values)
