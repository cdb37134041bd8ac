"""One rank of somebody else's training script, with the front door put in from outside.

Used by `tests.loops.prove_scripts`. The script's text stays as it is; what it imports is wrapped: the place where it
makes its optimizer, its average of the weights, its clipping. It runs on the CPU over gloo, where it asks for CUDA.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn, optim
from torch.utils import data

from dynsparse import SparseTraining
from pipelines.common.torchvision_ops import import_torchvision
from tests.loops.counting import Counter, counter_for


@dataclass(frozen=True)
class Order:
    """Order to a rank, as JSON in its first argument. The other arguments are the script's."""

    kind: str
    """timm or torchvision."""
    script: str
    method: dict[str, Any]
    momentum: float | None
    """Momentum of the sum of gradients that decides about growth, if gradients do."""
    sparsity: float
    total_steps: int
    steps_per_epoch: int
    results: str
    """A folder."""


class FrontDoor:
    """SparseTraining beside the script's model and optimizer, and what watches it."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.counter: Counter | None = None
        self.average: nn.Module | None = None

    def open(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        assert self.counter is None, "the script makes a second optimizer"
        order = self.order
        self.sparse = SparseTraining(
            model,
            optimizer,
            order.method,
            sparsity=order.sparsity,
            total_steps=order.total_steps,
            steps_per_epoch=order.steps_per_epoch,
            on_reallocation=self.reallocated,
        )
        self.counter = counter_for(self.sparse, model, optimizer)

    def reallocated(self, report: object) -> None:
        if self.average is not None:
            self.sparse.apply_masks(self.average)

    def averages(self, average: nn.Module) -> None:
        assert self.counter is not None
        self.average = average
        self.counter.follow(average)

    def before_clipping(self) -> None:
        assert self.counter is not None
        if self.order.momentum is not None:
            self.counter.show_gradients(self.order.momentum)
        self.sparse.prepare_gradients()
        self.counter.look_at_gradients()

    def tell(self) -> None:
        assert self.counter is not None, "the script made no optimizer"
        self.counter.close()
        told = {**asdict(self.counter.count), "counted_by_it": self.sparse.steps}
        Path(self.order.results, f"rank{os.environ['RANK']}.json").write_text(json.dumps(told))


def on_the_cpu() -> None:
    """Let a script that asks for CUDA and NCCL have the CPU and gloo."""
    torch.cuda.set_device = torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    torch.set_num_threads(1)
    tensor, init = torch.tensor, dist.init_process_group

    def tensor_here(*args: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return tensor(*args, device="cpu" if str(device).startswith("cuda") else device, **options)

    def init_here(backend: str | None = None, **options: Any) -> None:
        init("gloo", **options)

    class WithoutDevices(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module, device_ids: Any = None, **options: Any) -> None:
            super().__init__(module, **options)

    class WithoutProcesses(data.DataLoader):  # type: ignore[type-arg]
        """A process forked beside gloo's threads hangs at times."""

        def __init__(self, *args: Any, num_workers: int = 0, persistent_workers: bool = False, **options: Any) -> None:
            super().__init__(*args, **options)

    data.DataLoader = WithoutProcesses  # type: ignore[misc]
    torch.tensor, dist.init_process_group = tensor_here, init_here  # type: ignore[assignment]
    nn.parallel.DistributedDataParallel = WithoutDevices  # type: ignore[misc]


def after(owner: Any, name: str, see: Callable[..., None]) -> None:
    """Call `see(result, *arguments)` after each call of `owner.name`."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        see(result, *args)
        return result

    setattr(owner, name, wrapped)


def before(owner: Any, name: str, act: Callable[[], None]) -> None:
    """Call `act()` before each call of `owner.name`."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        act()
        return original(*args, **options)

    setattr(owner, name, wrapped)


def into_timm(door: FrontDoor) -> None:
    import timm.optim
    import timm.utils

    init = timm.utils.init_distributed_device

    def init_here(args: Any) -> torch.device:
        args.device = "cpu"
        device: torch.device = init(args)
        return device

    def made(optimizer: optim.Optimizer, model: nn.Module, *_: Any) -> None:
        door.open(model, optimizer)

    timm.utils.init_distributed_device = init_here
    after(timm.optim, "create_optimizer_v2", made)
    for name in ("ModelEmaV2", "ModelEmaV3"):
        after(timm.utils, name, lambda average, *_: door.averages(average))
    before(timm.utils, "dispatch_clip_grad", door.before_clipping)


def into_torchvision(door: FrontDoor) -> None:
    import torchvision
    import utils  # The script's own.

    models: list[nn.Module] = []
    for name in torchvision.models.list_models(torchvision.models):
        after(torchvision.models, name, lambda model, *_: models.append(model))
    for name in ("SGD", "RMSprop", "AdamW"):
        after(optim, name, lambda optimizer, *_: door.open(models[-1], optimizer))
    after(utils, "ExponentialMovingAverage", lambda average, *_: door.averages(average))
    before(nn.utils, "clip_grad_norm_", door.before_clipping)


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    sys.argv = [order.script, *sys.argv[2:]]
    sys.path.insert(0, str(Path(order.script).parent))
    import_torchvision()
    on_the_cpu()
    door = FrontDoor(order)
    {"timm": into_timm, "torchvision": into_torchvision}[order.kind](door)
    runpy.run_path(order.script, run_name="__main__")
    door.tell()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
