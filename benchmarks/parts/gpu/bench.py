"""Networks, trainers, clocks and findings that the parts of `benchmarks.gpu` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.rounds import Act, in_rounds
from benchmarks.harness.runs import run_config
from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.network import Network, build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch, Data, EvaluationPipeline
from pipelines.common.epochs import EpochTable
from pipelines.order import Indices

FOR_EVER = 1_000_000_000
"""A period in steps: no reallocation in any run here."""
FAST = {"precision": "bf16", "channels_last": True}
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
VIT_224 = Case("ViT-S/16, 224 px, batch 256", {"name": "timm/vit_small_patch16_224"}, 224, 1000, 256)
SMALL_VIT = {"name": "timm/vit_small_patch16_224", "options": {"depth": 1, "embed_dim": 48, "num_heads": 3}}
TINY_VIT = Case("a small ViT", SMALL_VIT, 32, 10, 2)
TINY_RESNET = Case("a narrow ResNet-50", {"name": "imagenet_resnet50", "widen_factor": 0.1}, 32, 10, 2)


class Row(NamedTuple):
    """A line of the table. `holds` is None where there is nothing that it must reach."""

    what: str
    found: str
    wanted: str = ""
    holds: bool | None = None
    must: bool = False
    """True where it is a fault if it does not hold, False where it is only slower than hoped for."""


@dataclass
class Found:
    """Figures that a part has found so far, for the JSON, and lines for the table."""

    figures: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def say(self, what: str, found: str) -> None:
        self.rows.append(Row(what, found))

    def check(self, what: str, holds: bool, found: str = "") -> None:
        """Note what must hold on every device."""
        self.rows.append(Row(what, found or ("yes" if holds else "no"), "", bool(holds), must=True))

    def target(self, what: str, value: float, limit: float, *, digits: int = 3) -> None:
        """Note a time or size that is to be at most `limit`."""
        self.rows.append(Row(what, f"{value:.{digits}f}", f"at most {limit:g}", value <= limit))


@dataclass(frozen=True)
class Bench:
    """A device, and the time that a part has on it."""

    device: torch.device
    tiny: bool
    ends: float
    """`time.monotonic()` by which the part is to be done. Rounds end before it, once there are a few."""
    photographs: Path | None = None
    """Folder of images to read; None: they are made."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


# Networks and trainers


def resnet(bench: Bench, batch: int = 256) -> Case:
    return TINY_RESNET if bench.tiny else RESNET_224._replace(batch=batch, title=f"ResNet-50, 224 px, batch {batch}")


def wrn(bench: Bench) -> Case:
    return SMALL if bench.tiny else WRN_32


def settings(case: Case, method: Mapping[str, Any], **sections: Any) -> RunConfig:
    """Return the config of a run at sparsity 0.9. A dense network has no sparse layers, and so no masks of any kind."""
    sparsity = {"exclude": ["*"]} if method["name"] == "dense" else {}
    train = {"global_batch_size": case.batch, "lr": {"name": "steps", "table": {0: 0.01}}}
    given = {name: sections.pop(name, {}) for name in ("sparsity", "train")}
    return run_config(
        case.model,
        method,
        case.image,
        case.classes,
        sparsity={**sparsity, **given["sparsity"]},
        data={"loader": "torch"},
        train={**train, **given["train"]},
        **sections,
    )


class BatchesOnDevice:
    """A `TrainPipeline` of a few batches that are on the device already, over and over."""

    epochs = EpochTable.of(1000)

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._place = 0
        self.bad_samples: dict[int, str] = {}

    def epoch(self) -> Iterator[list[Batch]]:
        while self._place < self.epochs.steps(0):
            self._place += 1
            yield [self._batches[(self._place - 1) % len(self._batches)]]

    def samples(self, epoch: int, batch: int) -> list[Indices]:
        size, place = len(self._batches[0][1]), batch % len(self._batches)
        return [np.arange(place * size, (place + 1) * size, dtype=np.int64)]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self._place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._place = state["place"]

    def seek(self, epoch: int, batch: int) -> None:
        self._place = batch

    def avoid(self, bad: Mapping[int, str]) -> None:
        assert not bad

    def close(self) -> None:
        pass


def batches(config: RunConfig, device: torch.device, count: int = 2, seed: int = 7) -> BatchesOnDevice:
    """Make random images in the memory format that the config asks for, and random labels: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        images = torch.randn(config.train.batch_at(0), *config.data.image_shape, generator=generator)
        labels = torch.randint(config.data.classes, (len(images),), generator=generator)
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        made.append((images.to(device).contiguous(memory_format=layout), labels.to(device)))
    return BatchesOnDevice(made)


def make_trainer(
    config: RunConfig, device: torch.device, network: Network | None = None, worker: Worker | None = None
) -> Trainer:
    """Return a trainer to be stepped by hand: there is nothing to evaluate on. Each worker has batches of its own."""
    worker = worker or Worker()
    data = Data(batches(config, device, seed=7 + worker.rank), cast(EvaluationPipeline, None))
    return Trainer(config, network or build_network(config, device), data, worker)


def steps(trainer: Trainer, count: int) -> list[float]:
    """Train for some steps. Returns their losses."""
    epoch = trainer.data.train.epoch()
    return [trainer.train_step(next(epoch)).item() for _ in range(count)]


def steps_without_reading(trainer: Trainer, count: int) -> None:
    """Train for some steps. No loss is read, so the host waits for nothing."""
    epoch = trainer.data.train.epoch()
    for _ in range(count):
        trainer.train_step(next(epoch))


def is_zero_outside(trainer: Trainer) -> bool:
    """Say whether weights and moments outside the masks are exactly 0."""
    for layer in trainer.masks:
        outside = ~layer.mask
        moments = [value for value in trainer.optimizer.state[layer.weight].values() if isinstance(value, Tensor)]
        tensors = [layer.weight.detach(), *(value for value in moments if value.shape == layer.weight.shape)]
        if any(bool(tensor[outside].any()) for tensor in tensors):
            return False
    return True


# Clocks


def rounds_until(
    bench: Bench, ways: Mapping[str, Act], rounds: int, before: Callable[[str], Any] = lambda way: None
) -> dict[str, list[float]]:
    """Measure in rounds, but fewer where time runs out."""
    return in_rounds(ways, 2 if bench.tiny else rounds, before=before, ends=bench.ends)


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
