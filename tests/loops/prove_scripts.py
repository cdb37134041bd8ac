"""Prove that the front door keeps a network sparse in the training scripts of timm and torchvision, as they are.

    python -m tests.loops.prove_scripts --timm DIR --torchvision DIR

DIR holds train.py of timm's repository, or what is in references/classification of torchvision's. Both are run on two
ranks over gloo, with an average of the weights, clipping by norm and, with timm, accumulation. What is counted is
counted by `tests.loops.counting`, at each optimizer step. Exits with 1 if anything is not as it should be. timm has to
be installed for its script.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from tests.loops.counting import Count
from tests.loops.in_script import Order
from tests.loops.small import BY_GRADIENT, KEEP_LAYERS

ROOT = Path(__file__).parents[2]
RANKS, CLASSES, IMAGES, SIDE = 2, 8, 50, 32
BATCH, EPOCHS, ACCUMULATE, PERIOD, SPARSITY = 8, 2, 2, 4, 0.9
METHODS = {
    "rigl": {"name": "rigl", "period": PERIOD},
    "dsr": {"name": "dsr", "period": PERIOD, "initial_threshold": 2e-3, "target_moves": 5000},
    "sparse_momentum": {"name": "sparse_momentum", "period": PERIOD},
}
SECONDS = 300


def write_images(folder: Path) -> None:
    """Noise with a bar whose place tells the class."""
    generator = np.random.default_rng(0)
    for split, number in (("train", IMAGES), ("val", 8)):
        for label in range(CLASSES):
            (folder / split / str(label)).mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[label * 4 : label * 4 + 4] = 255
                Image.fromarray(pixels).save(folder / split / str(label) / f"{i}.png")


def command(kind: str, data: Path, output: Path) -> list[str]:
    """The script's own arguments."""
    size = str(SIDE)
    common = ["--model", "resnet18", "-b", str(BATCH), "--epochs", str(EPOCHS), "--lr", "0.05", "--model-ema"]
    if kind == "timm":
        return [
            *("--data-dir", str(data), "--val-split", "val", "--num-classes", str(CLASSES)),
            *("--input-size", "3", size, size, "-j", "1", "--warmup-epochs", "0", "--output", str(output)),
            *(*common, "--model-ema-decay", "0.9", "--clip-grad", "1", "--grad-accum-steps", str(ACCUMULATE)),
        ]
    return [
        *("--data-path", str(data), "--device", "cpu", "-j", "0", "--output-dir", str(output)),
        *("--train-crop-size", size, "--val-crop-size", size, "--val-resize-size", size),
        *(*common, "--model-ema-decay", "0.99", "--model-ema-steps", "2", "--clip-grad-norm", "1"),
    ]


def steps_per_epoch(kind: str) -> int:
    """Optimizer steps, counted as each script makes them."""
    mine = CLASSES * IMAGES / RANKS / BATCH
    return math.ceil(math.floor(mine) / ACCUMULATE) if kind == "timm" else math.ceil(mine)


Told = dict[str, Any]
"""Counts of one rank."""


def run(kind: str, script: Path, method: str, data: Path, folder: Path, extra: Sequence[str]) -> list[Told]:
    """Run a script, and return each rank's counts. RuntimeError with the end of its output if it fails or hangs."""
    folder.mkdir()
    order = Order(
        kind=kind,
        script=str(script),
        method=METHODS[method],
        momentum=BY_GRADIENT.get(method),
        sparsity=SPARSITY,
        total_steps=EPOCHS * steps_per_epoch(kind),
        steps_per_epoch=steps_per_epoch(kind),
        results=str(folder),
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    words += ["-m", "tests.loops.in_script", json.dumps(asdict(order))]
    with open(folder / "output.txt", "w+", encoding="utf-8") as output:
        torchrun = subprocess.Popen(
            [*words, *command(kind, data, folder / "output"), *extra],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            failed = torchrun.wait(SECONDS)
        except subprocess.TimeoutExpired:
            failed = True
            torchrun.terminate()  # It ends its workers.
            torchrun.wait()
        output.seek(0)
        lines = output.read().splitlines()
    if failed:
        last = next((i for i, line in enumerate(lines) if "torch/distributed/elastic" in line), len(lines))
        raise RuntimeError("\n".join(lines[max(0, last - 30) : last]))  # What torchrun says of it tells nothing.
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


def judge(kind: str, method: str, told: Sequence[Told]) -> tuple[Count, list[str]]:
    """The first rank's numbers, and what is wrong with those of any."""
    by_it = [one.pop("counted_by_it") for one in told]
    counts = [Count(**one) for one in told]
    wrong = []
    for rank, count in enumerate(counts):
        faults = count.faults(layers_keep=method in KEEP_LAYERS, reallocations=3)
        if count.steps != EPOCHS * steps_per_epoch(kind) or by_it[rank] != count.steps:
            faults.append(f"{count.steps} optimizer steps, {by_it[rank]} counted by SparseTraining")
        if not count.copies_seen:
            faults.append("the average was never seen")
        if method in BY_GRADIENT and count.growths_judged != count.reallocations:
            faults.append(f"{count.growths_judged} of {count.reallocations} growths judged")
        wrong += [f"rank {rank}: {fault}" for fault in faults]
    if len({count.digest for count in counts}) > 1:
        wrong.append("ranks end with other masks or weights")
    return counts[0], wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", type=Path, metavar="DIR", help="the folder of timm's train.py")
    parser.add_argument("--torchvision", type=Path, metavar="DIR", help="the folder of torchvision's train.py")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("extra", nargs="*", help="after --: further arguments for the scripts")
    args = parser.parse_args()
    folders = {kind: folder for kind in ("timm", "torchvision") if (folder := getattr(args, kind)) is not None}
    if not folders:
        parser.error("give the folder of a script")
    failed = False
    columns = "{:<12} {:<16} {:>6} {:>14} {:>7} {:>9} {:>9} {:>9} {:>10} {:>10}"
    heads = ("script", "method", "steps", "reallocations", "grown", "outside", "state", "average", "budget", "off by")
    print(columns.format(*heads))
    with TemporaryDirectory() as temporary:
        data = Path(temporary) / "images"
        write_images(data)
        for kind, folder in folders.items():
            for method in args.methods:
                script = (folder / "train.py").resolve()
                try:
                    told = run(kind, script, method, data, Path(temporary) / f"{kind}_{method}", args.extra)
                except RuntimeError as error:
                    failed = True
                    print(f"{kind} {method}: the script failed\n{error}")
                    continue
                count, wrong = judge(kind, method, told)
                worst = (count.outside, count.state_outside, count.copies_outside, count.budget, count.off_budget)
                print(columns.format(kind, method, count.steps, count.reallocations, count.grown, *worst), flush=True)
                for fault in wrong:
                    print(f"  {fault}")
                failed = failed or bool(wrong)
    print("something is wrong" if failed else "all was kept, at every step of every rank")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
