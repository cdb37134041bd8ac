"""Time that saving takes from training, and bytes that a checkpoint takes of the disk.

    python -m benchmarks.checkpoints                (about 5 minutes on 2 cores; a quiet machine)
    python -m benchmarks.checkpoints --page         (the page anew, from the JSON)

ResNet-50 with the paper's sparse layers, on a GPU where there is one. Time: blocks of steps without a save and with one
after their first step, written in the background or in the foreground, take turns. Size: after some steps, and as late
in a long run, when half of the inactive positions have once been active.
"""

from __future__ import annotations

import io
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import finished, in_rounds, ratios, returned, summaries, summary
from benchmarks.harness.runs import data_of, run_config, settled
from benchmarks.harness.script import page_parser, run
from dynsparse.config.schema import RunConfig
from dynsparse.training.checkpoint import CheckpointFolder, kept, write
from dynsparse.training.checkpoint import format as checkpoint_format
from dynsparse.training.checkpoint.deflating import save_deflated
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch

SPARSITIES = (0.5, 0.9, 0.95, 0.99)
OPTIMIZERS: dict[str, dict[str, Any]] = {"SGD": {"name": "sgd", "momentum": 0.9}, "AdamW": {"name": "adamw"}}
STORED = {"SGD": 2, "AdamW": 3}
"""Values for each weight: itself and its moments."""
WAYS = {
    "none": "no save",
    "background": "a save in the background",
    "foreground": "the same, waited for",
    "foreground, not deflated": "waited for, and not deflated (as format 1 was)",
}


class Amount(NamedTuple):
    """The amount that is measured."""

    rounds: int = 5
    steps: int = 10
    """Steps of a block."""
    image: int = 32
    batch: int = 8
    width: float = 1.0
    late: int = 3
    """Steps before a file is measured."""


TINY = Amount(rounds=2, steps=2, image=32, batch=2, width=0.1, late=1)


def main() -> None:
    run("checkpoints", page_parser(__doc__, rounds=Amount().rounds), measure, page)


def measure(asked: Namespace) -> Result:
    amount = TINY if asked.tiny else Amount(rounds=asked.rounds)
    if asked.output is not None:  # Saves are timed on the disk that the figures go to.
        asked.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=asked.output) as folder:
        return {"time": times(amount, Path(folder)), "size": sizes(amount, Path(folder))}


def settings(amount: Amount, sparsity: float, optimizer: str) -> RunConfig:
    return run_config(
        {"name": "imagenet_resnet50", "widen_factor": amount.width},
        {"name": "dsr", "period": 2, "target_moves": round(20_000 * amount.width**3)},
        amount.image,
        1000,
        sparsity={"conv": sparsity, "fc": sparsity},
        data={"samples": 1000, "test_samples": 10},
        train={"global_batch_size": amount.batch, "optimizer": OPTIMIZERS[optimizer]},
    )


def trainer(config: RunConfig, folder: Path) -> tuple[Trainer, list[Batch]]:
    """Return a trainer that has settled, and a batch for it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = data_of(config, device=device)
    trainer = settled(config, build_network(config, device), data, checkpoints=CheckpointFolder(folder, 2))
    batch = [(images.to(device), labels.to(device)) for images, labels in next(iter(data.train.epoch()))]
    data.close()
    return trainer, batch


# Time


def times(amount: Amount, folder: Path) -> Result:
    """Seconds of a block, ratios within a round, and milliseconds of the parts of a save."""
    trained, batch = trainer(settings(amount, 0.9, "SGD"), folder / "time")
    ways = {way: partial(block, trained, batch, amount.steps, way) for way in WAYS}
    found = in_rounds(ways, amount.rounds, measure=returned)
    blocks = {way: [taken for taken, _, _ in rounds] for way, rounds in found.items()}
    held_up = {way: [waited for _, waited, _ in rounds] for way, rounds in found.items() if way != "none"}
    lost = {way: [a - b for a, b in zip(blocks[way], blocks["none"], strict=True)] for way in held_up}
    return {
        **amount._asdict(),
        "sparsity": 0.9,
        "optimizer": "SGD",
        "step_ms": summary([1000 * taken / amount.steps for taken in blocks["none"]]),
        "block_seconds": summaries(blocks),
        "ratio_to_no_save": ratios(blocks, "none"),
        "lost_ms": summaries(lost, 1000),
        "held_up_ms": summaries(held_up, 1000),
        "write_in_background_ms": summary([1000 * written for _, _, written in found["background"]]),
    }


def block(trained: Trainer, batch: list[Batch], steps: int, way: str) -> tuple[float, float, float]:
    """Train a block, with a save after its first step. Returns seconds: of all, held up by the save, of its write."""
    assert trained.saving.checkpoints is not None
    held_up = 0.0
    with timed_writes(way) as writing:
        began = finished()
        for step in range(steps):
            trained.train_step(batch)
            if step == 0 and way != "none":
                waited = finished()
                trained.saving.save()
                if way != "background":
                    trained.saving.checkpoints.wait()
                held_up = time.perf_counter() - waited
        taken = finished() - began
        trained.saving.checkpoints.wait()
    return taken, held_up, sum(writing)


@contextmanager
def timed_writes(way: str) -> Iterator[list[float]]:
    """Have saves written in this way; the list gets the seconds of each."""
    seconds: list[float] = []

    def timed(*arguments: Any, **options: Any) -> None:
        began = time.perf_counter()
        write(*arguments, **options)
        seconds.append(time.perf_counter() - began)

    save = torch.save if way == "foreground, not deflated" else save_deflated
    with patch.object(checkpoint_format, "save_deflated", save), patch.object(kept, "write", timed):
        yield seconds


# Size


def sizes(amount: Amount, folder: Path) -> list[Result]:
    return [
        row
        for sparsity in SPARSITIES
        for optimizer in OPTIMIZERS
        for row in sizes_of(amount, folder, sparsity, optimizer)
    ]


def sizes_of(amount: Amount, folder: Path, sparsity: float, optimizer: str) -> list[Result]:
    """Bytes of a checkpoint, early and late in a run."""
    run, batch = trainer(settings(amount, sparsity, optimizer), folder)
    for _ in range(amount.late):
        run.train_step(batch)
    masks, stored = run.masks, STORED[optimizer]
    dense = run.network.total_parameters - masks.weights
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in run.model.buffers())
    sparse_limit = 1.05 * (4 * stored * masks.active_weights + masks.weights / 8)
    found = {
        "sparsity": sparsity,
        "optimizer": optimizer,
        "dense_checkpoint": size(lambda file: torch.save(plain_state(run), file)),
        "limit": round(sparse_limit + 4 * stored * dense + buffers),
        "limit_of_sparse_layers": round(sparse_limit),
    }
    return [{**found, "when": "early", "file": saved_size(run, folder)}, {**found, "when": "late", **late(run, folder)}]


def late(run: Trainer, folder: Path) -> Result:
    generator = torch.Generator().manual_seed(1)
    for layer in run.masks:
        layer.explored |= (torch.rand(layer.spec.units, generator=generator) < 0.5).to(layer.explored.device)
    return {"file": saved_size(run, folder)}


def saved_size(run: Trainer, folder: Path) -> int:
    path = folder / "size.pt"
    write(path, run.run.save([run.run.of_this_rank()]))
    return path.stat().st_size


def plain_state(run: Trainer) -> dict[str, Any]:
    return {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}


def size(save: Callable[[io.BytesIO], Any]) -> int:
    file = io.BytesIO()
    save(file)
    return file.tell()


def page(content: Result) -> str:
    return filled("checkpoints", content, WAYS=WAYS)


if __name__ == "__main__":
    main()
