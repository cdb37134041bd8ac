"""A worker on one of the two hosts of `benchmarks.allreduce`, which starts it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness.rounds import in_rounds
from benchmarks.harness.runs import CPU, GivenGradients, run_config
from dynsparse.distributed.allreduce import ActiveAllReduce
from dynsparse.training.network import Network, build_network
from tests.hosts import bytes_sent

DENSE, ACTIVE, POWERSGD, NOTHING = "dense", "active", "powersgd-", "nothing"
WAYS = (DENSE, ACTIVE, "fp16", f"{POWERSGD}1", f"{POWERSGD}2", NOTHING)
ONE_BUCKET_MB = 10_000
WARM_UP = 3  # Steps: buckets settle after the first, and PowerSGD begins with the third.


@dataclass(frozen=True)
class Amount:
    """The amount to measure."""

    model: Mapping[str, Any] = field(default_factory=lambda: {"name": "imagenet_resnet50"})
    image_size: int = 64
    classes: int = 1000
    batch: int = 8
    rounds: int = 7


class Way:
    """A network of its own, and how its gradients travel."""

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self.network = network
        network.initial_weights = {}
        # PowerSGD's second all-reduce of a bucket starts when its first is done, in any thread. Gloo matches
        # collectives by their order: those of several buckets would be taken for each other.
        cap = ONE_BUCKET_MB if name.startswith(POWERSGD) else None
        self.module = DistributedDataParallel(
            GivenGradients(network.model), init_sync=False, gradient_as_bucket_view=True, bucket_cap_mb=cap
        )
        self.optimizer = torch.optim.SGD(network.model.parameters(), lr=0.001, momentum=0.9)
        self._hook = ActiveAllReduce(network.masks)
        if name == ACTIVE:
            self._hook.register(self.module)
        elif name == "fp16":
            self.module.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif name.startswith(POWERSGD):
            rank = int(name.removeprefix(POWERSGD))
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
            self.module.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    @property
    def counted_bytes(self) -> int:
        """Bytes handed to the all-reduce so far, as the hook of the active gradients says."""
        return self._hook.bytes_sent

    def reduce(self, gradients: Sequence[Tensor]) -> None:
        """Reduce these, all there at once."""
        with self.module.no_sync() if self.name == NOTHING else nullcontext():
            self.module(gradients).backward()

    def step(self, images: Tensor, labels: Tensor) -> None:
        with self.module.no_sync() if self.name == NOTHING else nullcontext():
            functional.cross_entropy(self.module(images), labels).backward()
        self.network.masks.mask_gradients()
        self.optimizer.step()

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)


def networks(amount: Amount, include: list[str] | None) -> Iterator[Network]:
    """Yield the same network again and again, one for each way."""
    more = {"sparsity": {"include": include}} if include else {}
    config = run_config(amount.model, {"name": "static"}, amount.image_size, amount.classes, **more)
    while True:
        yield build_network(config, CPU)


def measured(act: Callable[[], None]) -> dict[str, float]:
    """Seconds of the slower worker, and bytes that this host sent."""
    dist.barrier()
    before = bytes_sent()
    dist.barrier()
    began = time.perf_counter()
    act()
    seconds = torch.tensor(time.perf_counter() - began)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return {"seconds": float(seconds), "bytes": bytes_sent() - before}


def in_turns(ways: Sequence[Way], rounds: int, act: Callable[[Way], None]) -> list[list[dict[str, float]]]:
    """Return what each round took, by way."""
    acts = {way: partial(act, way) for way in ways}
    return list(in_rounds(acts, rounds, warm_up=0, before=Way.clear, measure=measured).values())


def difference(model: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of any weight."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((ours - theirs).detach().abs().max()) for ours, theirs in pairs)


def measure(amount: Amount, include: list[str] | None) -> dict[str, Any]:
    """Measure all ways, in rounds in which they take turns."""
    ways = [Way(name, network) for name, network in zip(WAYS, networks(amount, include), strict=False)]
    generator = torch.Generator().manual_seed(dist.get_rank())
    images = torch.randn(amount.batch, 3, amount.image_size, amount.image_size, generator=generator)
    labels = torch.randint(amount.classes, (amount.batch,), generator=generator)
    in_turns(ways, WARM_UP, lambda way: way.step(images, labels))
    steps = in_turns(ways, amount.rounds, lambda way: way.step(images, labels))
    dense = ways[0].network
    differences = [difference(way.network.model, dense.model) for way in ways]
    gradients = [torch.randn(weight.shape, generator=generator) for weight in dense.model.parameters()]
    active = ways[WAYS.index(ACTIVE)]
    counted = active.counted_bytes
    reductions = in_turns(ways, amount.rounds, lambda way: way.reduce(gradients))
    return {
        "parameters": dense.total_parameters,
        "active_weights": dense.active_weights,
        "sparse_layer_weights": dense.sparse_layer_weights,
        "model_sparsity": dense.model_sparsity,
        "steps": WARM_UP + amount.rounds,
        "counted_bytes": (active.counted_bytes - counted) // amount.rounds,
        "ways": {
            way.name: {"step": step, "reduce": reduction, "largest_difference": far}
            for way, step, reduction, far in zip(ways, steps, reductions, differences, strict=True)
        },
    }


def main() -> None:
    """Read the arguments: the amount as JSON, and the file to write to."""
    amount, output = Amount(**json.loads(sys.argv[1])), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = {"paper": measure(amount, None), "all": measure(amount, ["*"])}
    if dist.get_rank() == 0:
        output.write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
