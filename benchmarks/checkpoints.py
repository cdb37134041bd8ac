"""What saving takes from training, and what a checkpoint takes of the disk.

    python -m benchmarks.checkpoints                (about 5 minutes on 2 cores; a quiet machine)
    python -m benchmarks.checkpoints --page         (the page anew, from the JSON)

ResNet-50 with the paper's sparse layers, on a GPU where there is one. Time: blocks of steps without a save and with one
after their first step, written in the background or in the foreground, take turns. Size: after some steps, and as late
in a long run, when half of the inactive positions have once been active.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

import pipelines
from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.record import PAGES
from benchmarks.harness.rounds import finished, summary
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.checkpoint import CheckpointFolder, kept, write
from dynsparse.training.checkpoint import format as checkpoint_format
from dynsparse.training.checkpoint.deflating import save_deflated
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch, Request
from pipelines.order import Share

NAME = "checkpoints"
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
Result = dict[str, Any]


class Amount(NamedTuple):
    """How much is measured."""

    rounds: int = 5
    steps: int = 10
    """Of a block."""
    image: int = 32
    batch: int = 8
    width: float = 1.0
    late: int = 3
    """Steps before a file is measured."""


TINY = Amount(rounds=2, steps=2, image=32, batch=2, width=0.1, late=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--rounds", type=int, default=Amount().rounds, help=f"measured ({Amount().rounds})")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")
    arguments = parser.parse_args()
    path = (arguments.output or record.RESULTS) / f"{NAME}.json"
    if not arguments.page:
        amount = TINY if arguments.tiny else Amount(rounds=arguments.rounds)
        load = round(os.getloadavg()[0], 2)
        with TemporaryDirectory(dir=arguments.output) as folder:
            result = {"load_before": load, "time": times(amount, Path(folder)), "size": sizes(amount, Path(folder))}
        command = shlex.join(["python", "-m", "benchmarks.checkpoints", *sys.argv[1:]])
        if arguments.output or not arguments.tiny:
            path = record.keep(NAME, command, result, arguments.output)
        print("\n\n".join(page(result)))
    if path.exists() and (arguments.output or not arguments.tiny):
        text = "\n\n".join(page(json.loads(path.read_text()))) + "\n"
        ((arguments.output or PAGES) / f"{NAME}.md").write_text(text)


def settings(amount: Amount, sparsity: float, optimizer: str) -> RunConfig:
    return loading.parse(
        {
            "model": {"name": "imagenet_resnet50", "widen_factor": amount.width},
            "sparsity": {"conv": sparsity, "fc": sparsity},
            "method": {"name": "dsr", "period": 2, "target_moves": round(20_000 * amount.width**3)},
            "data": {
                "name": "synthetic",
                "shape": [3, amount.image, amount.image],
                "number_of_classes": 1000,
                "samples": 1000,
                "test_samples": 10,
            },
            "train": {"global_batch_size": amount.batch, "optimizer": OPTIMIZERS[optimizer]},
        }
    )


def trainer(config: RunConfig, folder: Path) -> tuple[Trainer, list[Batch]]:
    """One that has settled, and a batch for it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    request = Request(config.seed, config.train.global_batch_size, Share(0, 1, 1), 10, device_id=device.index)
    data = pipelines.build(config.data, request)
    trainer = Trainer(config, build_network(config, device), data, Worker(), checkpoints=CheckpointFolder(folder, 2))
    trainer._settle()
    batch = [(images.to(device), labels.to(device)) for images, labels in next(iter(data.train.epoch()))]
    data.close()
    return trainer, batch


# Time


def times(amount: Amount, folder: Path) -> Result:
    """Medians over the rounds: seconds of a block, ratios within a round, and of a save its parts in ms."""
    run, batch = trainer(settings(amount, 0.9, "SGD"), folder / "time")
    assert run.saving.checkpoints is not None
    blocks: dict[str, list[float]] = {way: [] for way in WAYS}
    calls: dict[str, list[float]] = {way: [] for way in WAYS if way != "none"}
    writes: list[float] = []
    for round_number in range(-1, amount.rounds):  # The first warms up.
        for way in WAYS:
            writing = timed_writes(way)
            began = finished()
            for step in range(amount.steps):
                run.train_step(batch)
                if step == 0 and way != "none":
                    waited = finished()
                    run.saving.save()
                    if way != "background":
                        run.saving.checkpoints.wait()
                    call = time.perf_counter() - waited
            block = finished() - began
            run.saving.checkpoints.wait()
            if round_number >= 0:
                blocks[way].append(block)
                if way != "none":
                    calls[way].append(1000 * call)
                if way == "background":
                    writes.append(1000 * writing[0])
    checkpoint_format.save_deflated, kept.write = save_deflated, write
    none = blocks["none"]
    return {
        **amount._asdict(),
        "sparsity": 0.9,
        "optimizer": "SGD",
        "step_ms": summary([1000 * block / amount.steps for block in none]),
        "block_seconds": {way: summary(found) for way, found in blocks.items()},
        "ratio_to_no_save": {
            way: summary([a / b for a, b in zip(found, none, strict=True)]) for way, found in blocks.items()
        },
        "lost_ms": {way: summary([1000 * (a - b) for a, b in zip(blocks[way], none, strict=True)]) for way in calls},
        "held_up_ms": {way: summary(found) for way, found in calls.items()},
        "write_in_background_ms": summary(writes),
    }


def timed_writes(way: str) -> list[float]:
    """Let the coming saves be written in this way; the list gets the seconds of each."""
    seconds: list[float] = []
    checkpoint_format.save_deflated = torch.save if way == "foreground, not deflated" else save_deflated  # type: ignore[assignment]

    def timed(path: Path, state: Any) -> None:
        began = time.perf_counter()
        write(path, state)
        seconds.append(time.perf_counter() - began)

    kept.write = timed
    return seconds


# Size


def sizes(amount: Amount, folder: Path) -> list[Result]:
    return [
        row
        for sparsity in SPARSITIES
        for optimizer in OPTIMIZERS
        for row in sizes_of(amount, folder, sparsity, optimizer)
    ]


def sizes_of(amount: Amount, folder: Path, sparsity: float, optimizer: str) -> list[Result]:
    """Bytes, early and late in a run."""
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


# The page


def page(content: Result) -> list[str]:
    """Paragraphs."""
    return ["# Checkpoints", *time_text(content["time"]), *size_text(content["size"])]


def time_text(found: Result) -> list[str]:
    rows = [
        [
            WAYS[way],
            "" if way == "none" else spread(found["held_up_ms"][way], 0),
            "" if way == "none" else spread(found["lost_ms"][way], 0),
            spread(found["ratio_to_no_save"][way], 3),
        ]
        for way in WAYS
    ]
    return [
        "## Time",
        (
            f"ResNet-50 at {100 * found['sparsity']:.0f} % with {found['optimizer']}, images of {found['image']} px, "
            f"batch {found['batch']}, {found['step_ms']['median']:.0f} ms a step. Blocks of {found['steps']} steps, "
            f"one save in each; median of {found['rounds']} rounds in which the ways take turns, and the least and the "
            "most. Held up: how long the save kept the next step waiting. Lost: the block, less the block without a "
            "save of its round; where training computes on the cores that also write, it slows down meanwhile. "
            f"The write in the background took {spread(found['write_in_background_ms'], 0)} ms."
        ),
        table(["a block with", "held up, ms", "lost, ms", "ratio to no save"], rows),
    ]


def size_text(rows: Sequence[Result]) -> list[str]:
    return [
        "## Size",
        (
            "MB. The limit: for the sparse layers 1.05 x (4 bytes for each active weight and moment + a bit for each "
            "position), for the rest its weights, moments and buffers. Late: half of the inactive positions, at "
            "random, have once been active, which no code tells in less than a bit for each. Dense: `torch.save` of "
            "the network's and the optimizer's state_dict."
        ),
        table(
            ["sparsity", "optimizer", "when", "file", "limit", "file / limit", "dense", "file / dense"],
            [
                [
                    f"{row['sparsity']:g}",
                    row["optimizer"],
                    row["when"],
                    f"{row['file'] / 1e6:.1f}",
                    f"{row['limit'] / 1e6:.1f}",
                    f"{row['file'] / row['limit']:.3f}",
                    f"{row['dense_checkpoint'] / 1e6:.1f}",
                    f"{row['file'] / row['dense_checkpoint']:.3f}",
                ]
                for row in rows
            ],
        ),
    ]


if __name__ == "__main__":
    main()
