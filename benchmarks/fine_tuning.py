"""Fine-tuning at 90 % sparsity from a network of other classes, beside the same run from scratch.

    python -m benchmarks.fine_tuning --images DIR        (about 10 minutes of one core)

DIR holds train/CLASS and val/CLASS, photographs of ten classes or more, such as Imagenette. A dense ResNet-18 learns
the first five classes at 64 pixels. Then a sparse one learns five others: from its largest weights, and from scratch.
Both see the same few images, in the same order, by the same schedule.

Accuracy is that of the last epoch, on images that were not trained on.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.harness import record
from benchmarks.harness.record import Result
from benchmarks.harness.script import plain_parser
from benchmarks.parts.photographs import shrunk
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.building import build_trainer
from dynsparse.training.resume import checkpoints_of
from dynsparse.training.sources import read_sources

CLASSES = 5
SIDE = 96
"""Shorter side of the images that are kept: they are decoded again and again."""
WAYS = {
    "magnitude": "fine-tuned, its largest weights",
    "scratch": "from scratch",
}


class Amount(NamedTuple):
    """The amount that is trained on, and on which it is tested; images of each class."""

    source_images: int = 900
    source_epochs: int = 6
    images: int = 100
    test_images: int = 80
    epochs: int = 6
    seeds: int = 2
    pixels: int = 64
    network: str = "torchvision/resnet18"


TINY = Amount(3, 1, 2, 2, 1, 1, 32, "torchvision/squeezenet1_1")


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--images", metavar="DIR", type=Path, required=True, help="train/CLASS and val/CLASS")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    asked = parser.parse_args()
    result = {"load_before": record.load(), **measure(asked)}
    if asked.output or not asked.tiny:
        record.keep("fine_tuning", result, asked.output)
    print(table(result))


def measure(asked: Namespace) -> Result:
    """Train every way with every seed, with one thread."""
    amount, began = TINY if asked.tiny else Amount(), time.monotonic()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        there = Path(folder)
        classes = sorted(path.name for path in (asked.images / "train").iterdir())[: 2 * CLASSES]
        halves = {"source": classes[:CLASSES], "other": classes[CLASSES:]}
        for half, names in halves.items():
            take(asked.images, names, there / half, amount.source_images if half == "source" else amount.images, amount)
        source = config(0, amount, there, "source", {"method": {"name": "dense"}})
        accuracy = trained(source)
        print(f"the source on its own classes: {accuracy:.1f} %", flush=True)
        seeds = [of_seed(seed, amount, there, source) for seed in range(amount.seeds)]
    found = {"classes": halves, "source": accuracy, "seeds": seeds}
    return {**amount._asdict(), **found, "seconds": round(time.monotonic() - began)}


def take(images: Path, classes: list[str], to: Path, count: int, amount: Amount) -> None:
    """Copy the first images of each class, made small."""
    for part, most in (("train", count), ("val", amount.test_images)):
        for name in classes:
            (to / part / name).mkdir(parents=True)
            for path in sorted((images / part / name).iterdir())[:most]:
                shrunk(path, SIDE).save(to / part / name / f"{path.stem}.jpg", quality=95)


def of_seed(seed: int, amount: Amount, folder: Path, source: RunConfig) -> Result:
    """Train in every way. Accuracy in percent."""
    found: Result = {"seed": seed}
    for way in WAYS:
        found[way] = trained(config(seed, amount, folder, "other", sparse(way, source, amount)))
        print(f"seed {seed}, {WAYS[way]}: {found[way]:.1f} %", flush=True)
    return found


def sparse(way: str, source: RunConfig, amount: Amount) -> Mapping[str, Any]:
    """The sections of a sparse run that begins in one of WAYS."""
    sparsity: dict[str, Any] = {"conv": 0.9, "fc": 0.0, "allocation": "erk"}
    sections: dict[str, Any] = {
        "sparsity": sparsity,
        "method": {"name": "rigl", "period": 5, "stop_epoch": max(1, amount.epochs - 1)},
    }
    if way != "scratch":
        sections["model"] = {"name": amount.network, "weights": str(source.folder)}
        sparsity["initial"] = way
    return sections


def config(seed: int, amount: Amount, folder: Path, half: str, sections: Mapping[str, Any]) -> RunConfig:
    """A run on half of the classes."""
    raw: dict[str, Any] = {
        "name": f"{half}-{seed}",
        "runs": str(folder / "runs"),
        "seed": seed,
        "model": {"name": amount.network},
        "data": {
            "name": "imagenet",
            "path": str(folder / half),
            "number_of_classes": CLASSES,
            "image_size": amount.pixels,
            "threads": 1,
        },
        "train": {
            "epochs": amount.source_epochs if half == "source" else amount.epochs,
            "global_batch_size": min(25, CLASSES * amount.images),
            "optimizer": {"name": "sgd", "weight_decay": 5e-4},
            "lr": {"name": "cosine", "peak": 0.05, "warmup_epochs": min(1, amount.epochs / 2)},
        },
        "log": {"tensorboard": False, "progress": "none"},
    }
    return loading.parse({**raw, **sections})


def trained(run: RunConfig) -> float:
    """Train to the end. Returns the accuracy on the test images in percent."""
    is_source = run.method.name == "dense"
    trainer = build_trainer(run, Worker(), read_sources(run), checkpoints=checkpoints_of(run) if is_source else None)
    try:
        accuracy = trainer.fit().test_top1
    finally:
        trainer.data.close()
    assert accuracy is not None
    return accuracy


def table(result: Mapping[str, Any]) -> str:
    """Return the accuracies as a table of Markdown."""
    seeds = result["seeds"]
    lines = [
        "| | " + " | ".join(f"seed {one['seed']}" for one in seeds) + " |",
        "| --- |" + " --- |" * len(seeds),
        *(f"| {words} | " + " | ".join(f"{one[way]:.1f} %" for one in seeds) + " |" for way, words in WAYS.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
