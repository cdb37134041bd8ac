"""The engine of a step: forward and backward of a global batch, and a way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, optim

from dynsparse import later
from dynsparse.config.schema import RunConfig
from dynsparse.optimizers import check_layouts, has_begun, skips_on_device
from dynsparse.runtime import Worker
from dynsparse.training import forward_seeds, packing
from dynsparse.training.criterion import Criterion
from dynsparse.training.devices import require_device
from dynsparse.training.evaluate import hits
from dynsparse.training.freezing import fixed_norms
from dynsparse.training.network import Network
from dynsparse.training.parallel import Parallel
from dynsparse.training.precision import Precision
from dynsparse.training.semi_structured import adopt_faster
from dynsparse.training.sizes import compiled, training_shape
from dynsparse.training.undo import Undo
from pipelines.base import Batch, dominant
from pipelines.order import Share


class Engine:
    """Makes gradients of batches, the same on every rank, and gives them to the optimizer or takes all back."""

    def __init__(
        self, config: RunConfig, network: Network, optimizer: optim.Optimizer, criterion: Criterion, worker: Worker
    ) -> None:
        self.config = config
        self.worker = worker
        self.criterion = criterion
        self.model = network.model
        self.optimizer = optimizer
        self.device = next(self.model.parameters()).device
        require_device(config, self.device)
        self.forward = compiled(self.model, config) if config.train.compile else self.model
        among = config.distributed
        self.parallel = Parallel(self.forward, network.masks, among.gradients, self.device, among.bucket_mb)
        self.precision = Precision(config.train.precision, self.device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        """Loss, top-1 hits and samples of this rank in this epoch."""
        self.fixed = fixed_norms(self.model)
        """BatchNorms that are frozen. Evaluation puts all modules into training again, so each step sets them."""
        self._share = Share(worker.rank, worker.world_size, config.train.micro_batches)
        self._by_forward = Undo([*packing.buffers(self.model).values(), self.sums])

    def backward(self, micro_batches: Sequence[Batch], *, whole: bool, epoch: int, step: int = 0) -> Tensor:
        """Leave the gradients of the mean loss over the global batch of an epoch, reduced over the ranks.

        They are 0 outside the masks, unless `whole` ones are asked for. `step` or `skip` follows. The number of the
        step seeds what the network draws. Returns this worker's mean loss, a scalar on the device.
        """
        self._by_forward.remember()
        for norm in self.fixed:
            norm.eval()
        global_batch = self.config.train.batch_at(epoch)
        batches = forward_seeds.each(micro_batches, self.config.seed, step, self._share, self.device)
        with self.parallel.accumulating():
            losses = [self._forward_backward(*batch, global_batch) for batch in islice(batches, len(micro_batches) - 1)]
        with self.parallel.reducing(whole=whole):
            losses.append(self._forward_backward(*next(batches), global_batch))
        return torch.stack(losses).sum() / sum(len(labels) for _, labels in micro_batches)

    def _forward_backward(self, images: Tensor, labels: Tensor, global_batch: int) -> Tensor:
        """Add a micro-batch's gradients, and its figures to the epoch's sums. Returns the sum of its losses.

        DDP takes the mean over the ranks. So each part is weighed by its samples: they need not be equally many.
        """
        logits, loss = self.loss(images, labels, self.parallel)
        self.precision.backward(loss / (global_batch / self.worker.world_size / len(labels)))
        loss_sum = loss.detach() * len(labels)
        self.sums[0] += loss_sum
        self.sums[1] += hits(logits.detach(), dominant(labels), 1)
        self.sums[2] += len(labels)
        return loss_sum

    def loss(self, images: Tensor, labels: Tensor, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the logits that `forward` gives in the run's precision, and their mean loss."""
        images = self._laid_out(images)
        with self.forward_pass():
            logits, taught = forward(images), self.criterion.taught(images)
        return logits, self.criterion(logits.float(), labels, taught)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Compute in the run's precision. With CUDA graphs, what the pass before has given may be overwritten."""
        if self.config.train.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with self.precision.autocast():
            yield

    def _laid_out(self, images: Tensor) -> Tensor:
        last = self.config.train.channels_last
        return images.contiguous(memory_format=torch.channels_last) if last else images

    def outcome(self) -> Tensor:
        """Give the gradients their true size. Returns the step's `Outcome`, as `Precision.outcome` does."""
        return self.precision.outcome(self.optimizer, self.model.parameters())

    @property
    def can_leave_open(self) -> bool:
        """Whether a step gains by not being read, and `step` can skip it on the device."""
        return later.is_far(self.device) and skips_on_device(self.optimizer) and has_begun(self.optimizer)

    def step(self, unless: Tensor | None = None) -> None:
        """Let the optimizer step on finite gradients; or do what `skip` does, where a flag on the device says so."""
        self.precision.step(self.optimizer, unless)
        self.optimizer.zero_grad()
        if unless is not None:
            self._by_forward.restore(where=unless)

    def skip(self) -> None:
        """Undo what `backward` did, instead of a step."""
        self.precision.skip()
        self.optimizer.zero_grad()
        self._by_forward.restore()

    def settle(self, *, epoch: int, gradients_before: str | None, always_whole: bool) -> None:
        """Make throw-away forward and backward passes, as of an epoch. The caller restores what a forward pass changes.

        DDP lays its buckets out anew after the first backward, which changes the order of sums and so the last bits
        of gradients on more than two ranks. Settled before the first step of every start, a resumed run sums like the
        one that was never interrupted. What `distributed.gradients: auto` means is chosen here too: see
        `Parallel.choose`.
        """
        train = self.config.train
        samples = train.samples_at_once(self.worker.world_size, epoch)
        images = torch.zeros(samples, *training_shape(self.config, epoch), device=self.device)
        labels = torch.zeros(samples, dtype=torch.int64, device=self.device)

        def throw_away(parts: int) -> None:
            self.backward([(images, labels)] * parts, whole=False, epoch=epoch)
            check_layouts(self.model.parameters())
            self.optimizer.zero_grad()

        if train.semi_structured:
            adopt_faster(self.model, self._laid_out(images), self.precision.autocast())
        throw_away(1)
        self.parallel.choose(
            lambda: throw_away(train.micro_batches), before=gradients_before, always_whole=always_whole
        )
        self.parallel.take_bytes_sent()
