"""What the parts of `benchmarks.gpu` share: networks and trainers on a device, clocks, and what they found."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.harness.rounds import in_rounds
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.network import Network, build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch, Data, EvaluationPipeline

FOR_EVER = 1_000_000_000
"""A period in steps: no reallocation in any run here."""
MOVING: Mapping[str, Mapping[str, Any]] = {
    "dsr": {"name": "dsr", "period": 2, "initial_threshold": 0.01, "target_moves": 5},
    "rigl": {"name": "rigl", "period": 2},
    "deepr": {"name": "deepr", "eta": 1.0, "temperature": 1e-4},
}
"""Settings under which weights move in a few steps."""


class Case(NamedTuple):
    """A network, its images and a batch of them."""

    title: str
    model: Mapping[str, Any]
    image: int
    classes: int
    batch: int


WRN = {"name": "cifar10_WideResNet", "depth": 28, "widen_factor": 2}
RESNET_224 = Case("ResNet-50, 224 px, batch 256", {"name": "imagenet_resnet50"}, 224, 1000, 256)
WRN_32 = Case("WRN-28-2, 32 px, batch 128", WRN, 32, 10, 128)
SMALL = Case("a small network", {"name": "small_cnn", "channels": [6, 8]}, 8, 10, 8)
TINY_RESNET = Case("a narrow ResNet-50", {"name": "imagenet_resnet50", "widen_factor": 0.1}, 32, 10, 2)


class Row(NamedTuple):
    """A line of the table. `holds` is None where there is nothing that it must reach."""

    what: str
    found: str
    wanted: str = ""
    holds: bool | None = None
    must: bool = False
    """Whether it is a fault if it does not hold, or only slower than hoped for."""


@dataclass
class Found:
    """What a part has found so far: all figures for the JSON, and lines for the table."""

    figures: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def say(self, what: str, found: str) -> None:
        self.rows.append(Row(what, found))

    def check(self, what: str, holds: bool, found: str = "") -> None:
        """What must be so on every device."""
        self.rows.append(Row(what, found or ("yes" if holds else "no"), "", bool(holds), must=True))

    def target(self, what: str, value: float, limit: float, *, digits: int = 3) -> None:
        """A time or size that is to be at most `limit`."""
        self.rows.append(Row(what, f"{value:.{digits}f}", f"at most {limit:g}", value <= limit))


@dataclass(frozen=True)
class Bench:
    """Where and for how long a part measures."""

    device: torch.device
    tiny: bool
    ends: float
    """`time.monotonic()` by which the part is to be done. Rounds end before it, once there are a few."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


# Networks and trainers


def resnet(bench: Bench, batch: int = 256) -> Case:
    return TINY_RESNET if bench.tiny else RESNET_224._replace(batch=batch, title=f"ResNet-50, 224 px, batch {batch}")


def wrn(bench: Bench) -> Case:
    return SMALL if bench.tiny else WRN_32


def settings(case: Case, method: Mapping[str, Any], **sections: Any) -> RunConfig:
    """At sparsity 0.9; a dense network has no sparse layers, and so no masks of any kind."""
    sparsity = {"conv": 0.9, "fc": 0.9, **({"exclude": ["*"]} if method["name"] == "dense" else {})}
    train = {"global_batch_size": case.batch, "lr": {"name": "steps", "table": {0: 0.01}}}
    return loading.parse(
        {
            "model": dict(case.model),
            "sparsity": {**sparsity, **sections.pop("sparsity", {})},
            "method": dict(method),
            "data": {
                "name": "synthetic",
                "shape": [3, case.image, case.image],
                "number_of_classes": case.classes,
                "loader": "torch",
            },
            "train": {**train, **sections.pop("train", {})},
            **sections,
        }
    )


class BatchesOnDevice:
    """A `TrainPipeline` of a few batches that are on the device already, over and over."""

    steps_per_epoch = 1000

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._place = 0
        self.bad_samples: dict[int, str] = {}

    def epoch(self) -> Iterator[list[Batch]]:
        while self._place < self.steps_per_epoch:
            self._place += 1
            yield [self._batches[(self._place - 1) % len(self._batches)]]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._place = state["place"]

    def avoid(self, bad: Mapping[int, str]) -> None:
        assert not bad

    def close(self) -> None:
        pass


def batches(config: RunConfig, device: torch.device, count: int = 2) -> BatchesOnDevice:
    """Random images in the memory format that the config asks for, and random labels: the same on every device."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for _ in range(count):
        images = torch.randn(config.train.global_batch_size, *config.data.image_shape, generator=generator)
        labels = torch.randint(config.data.classes, (len(images),), generator=generator)
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        made.append((images.to(device).contiguous(memory_format=layout), labels.to(device)))
    return BatchesOnDevice(made)


def make_trainer(config: RunConfig, device: torch.device, network: Network | None = None) -> Trainer:
    """To be stepped by hand: there is nothing to evaluate on."""
    data = Data(batches(config, device), cast(EvaluationPipeline, None))
    return Trainer(config, network or build_network(config, device), data, Worker())


def steps(trainer: Trainer, count: int) -> list[float]:
    """Train for some steps. Returns their losses."""
    epoch = trainer.data.train.epoch()
    return [trainer.train_step(next(epoch)).item() for _ in range(count)]


def is_zero_outside(trainer: Trainer) -> bool:
    """Whether weights and moments outside the masks are exactly 0."""
    for layer in trainer.masks:
        outside = ~layer.mask
        moments = [value for value in trainer.optimizer.state[layer.weight].values() if isinstance(value, Tensor)]
        tensors = [layer.weight.detach(), *(value for value in moments if value.shape == layer.weight.shape)]
        if any(bool(tensor[outside].any()) for tensor in tensors):
            return False
    return True


# Clocks


def rounds_until(
    bench: Bench, ways: Mapping[str, Callable[[], Any]], rounds: int, before: Callable[[str], Any] = lambda way: None
) -> dict[str, list[float]]:
    """`timing.in_rounds`, of fewer rounds where time runs out, but at least three; one more to warm up."""
    rounds = 2 if bench.tiny else rounds
    order = list(ways)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-1, rounds):
        if number >= 3 and time.monotonic() > bench.ends:
            break
        found = in_rounds({way: ways[way] for way in order}, 1, warm_up=0, before=before)
        if number >= 0:
            for way, (seconds,) in found.items():
                times[way].append(seconds)
        order.append(order.pop(0))
    return times


def device_ms(bench: Bench, act: Callable[[], Any]) -> float:
    """Milliseconds from the first to the last of what `act` asks of the GPU, by its own clock; by the CPU's on it."""
    if not bench.on_gpu:
        began = time.perf_counter()
        act()
        return 1000 * (time.perf_counter() - began)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    act()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))


class _Reads(TorchFunctionMode):
    """Counts what makes the host wait on a GPU, as far as it can be told without one."""

    ALWAYS = {
        "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "equal", "allclose",
        "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "is_nonzero", "cpu",
    }  # fmt: skip
    INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        by_mask = name in self.INDEXING and _holds_mask(args[1])
        copied = name == "to" and any(isinstance(a, torch.device) for a in (*args, *(kwargs or {}).values()))
        if name in self.ALWAYS or by_mask or copied:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _holds_mask(index: Any) -> bool:
    parts = index if isinstance(index, (tuple, list)) else (index,)
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


@contextmanager
def host_waits(device: torch.device) -> Iterator[list[str]]:
    """Each time that the host waits for the GPU within the block, copies to it included.

    Counted by torch itself. On the CPU it is a guess: calls that read a value or a number of elements, or copy to a
    device, which would have to wait.
    """
    if device.type != "cuda":
        with _Reads() as reads:
            yield reads.seen
        return
    seen: list[str] = []
    torch.cuda.synchronize(device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode(before)
            told = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
            seen += [f"{warning.filename}:{warning.lineno}" for warning in told]
