"""Digests of runs, to see whether a change leaves them the same, bit for bit.

    python -m benchmarks.digests record before.json --tree DIR     # of the code in another working tree
    python -m benchmarks.digests compare before.json               # of this one, with those
    python -m benchmarks.digests compare before.json --photographs data/imagenette-small

Runs are those of every digits config, or with --photographs an epoch of ResNet-18 on Imagenette by some methods. What
they give depends on the machine and on torch's version: compare on one machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.harness import record
from benchmarks.harness.record import ROOT
from benchmarks.harness.script import ScriptParser
from pipelines.common.command_line import at_least_1

NAME = "digests"
FACTS = ("mask_digest", "weight_digest", "test_top1", "active_weights", "reallocations", "steps")
DENSE = "digits_dense"
ON_PHOTOGRAPHS: Mapping[str, Mapping[str, Any]] = {
    "set": {"name": "set", "period": 20, "fraction": 0.3},
    "dsr": {"name": "dsr", "period": 20, "target_moves": 20_000},
    "rigl": {"name": "rigl", "period": 20, "fraction": 0.3},
    "chase": {"name": "chase", "period": 20, "fraction": 0.3, "channel_sparsity": 0.5},
}
"""Methods of the runs on photographs."""


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--tree", metavar="DIR", type=Path, default=ROOT, help="working tree of the code (this one)")
    parser.add_argument("--workers", type=at_least_1, nargs="+", default=[1, 2, 4])
    parser.add_argument("--configs", nargs="+", help="of configs/ (those of the digits)")
    parser.add_argument("--photographs", metavar="DIR", type=Path, help="train on Imagenette in DIR instead")
    parser.add_argument("--keep", action="store_true", help="keep what compare finds among the figures")
    asked = parser.parse_args()
    configs = on_photographs(asked.photographs) if asked.photographs else of_digits(asked.tree, asked.configs)
    found: dict[str, Any] = {"commit": record.commit(asked.tree), "runs": {}}
    for key, facts in measured(asked.tree, configs, asked.workers):
        found["runs"][key] = facts
        if asked.action == "record":
            asked.file.write_text(json.dumps(found, indent=2) + "\n")
    if asked.action == "compare":
        before = json.loads(asked.file.read_text())
        if asked.keep:
            keep(before, found)
        sys.exit(compare(before["runs"], found["runs"]))


def of_digits(tree: Path, names: Sequence[str] | None) -> dict[str, str]:
    """Return the texts of the named configs, or of all of the digits, the dense one first: pruning starts from it."""
    names = names or [path.stem for path in (tree / "configs").glob("digits_*.yaml")]
    return {name: (tree / "configs" / f"{name}.yaml").read_text() for name in sorted(names, key=_dense_first)}


def _dense_first(name: str) -> tuple[bool, str]:
    return name != DENSE, name


def on_photographs(images: Path) -> dict[str, str]:
    """Return the texts of configs: ResNet-18 on Imagenette by each of some methods."""
    sparsity = {"conv": 0.9, "fc": 0.0, "allocation": "erk", "exclude": ["conv1.*"]}
    data = {"name": "imagenet", "path": str(images.absolute()), "number_of_classes": 10, "image_size": 48}
    optimizer = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    train = {"epochs": 1, "global_batch_size": 64, "optimizer": optimizer, "lr": {"name": "cosine", "peak": 0.1}}
    return {
        f"imagenette_{name}": yaml.safe_dump(
            {
                "name": f"imagenette_{name}",
                "model": {"name": "torchvision/resnet18"},
                "sparsity": sparsity,
                "method": dict(method),
                "data": {**data, "evaluation_resize": 54},
                "train": train,
            }
        )
        for name, method in ON_PHOTOGRAPHS.items()
    }


def measured(tree: Path, configs: Mapping[str, str], workers: Sequence[int]) -> Iterator[tuple[str, dict[str, object]]]:
    """Run each config on each number of workers. Yields a key "config on n" and its facts."""
    for n in workers:
        with TemporaryDirectory() as folder:
            for name, text in configs.items():
                (Path(folder) / f"{name}.yaml").write_text(text)
                facts = run(tree, name, n, Path(folder))
                print(f"{name} on {n}: {facts}", flush=True)
                yield f"{name} on {n}", facts


def run(tree: Path, name: str, workers: int, folder: Path) -> dict[str, object]:
    """Train by the config in `folder` with the code of `tree`, and return the run's facts."""
    runs = folder / "runs"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    command += ["dist_train.py", "--config", f"{folder}/{name}.yaml", f"runs={runs}"]
    command += ["distributed.backend=gloo", "log.tensorboard=false", "log.progress=none", "data.threads=1"]
    if name == "digits_pruning":
        command.append(f"start.weights_from={runs}/{DENSE}")
    paths = os.pathsep.join(filter(None, [str(tree.absolute()), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} on {workers} failed:\n{done.stderr}")
    summary = json.loads((runs / name / "summary.json").read_text())
    return {fact: summary[fact] for fact in FACTS}


def compare(before: Mapping[str, object], after: Mapping[str, object]) -> int:
    """Print what differs. Returns how many of `after` do, or are not in `before`."""
    differing = [key for key, facts in after.items() if before.get(key) != facts]
    for key in differing:
        print(f"differs: {key}\n  before {before.get(key)}\n  after  {after[key]}")
    print(f"{len(after) - len(differing)} of {len(after)} runs are the same")
    return len(differing)


def keep(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Keep what both trees gave, run by run, beside what earlier comparisons have kept."""
    kept = record.kept(NAME).get("runs", {}) if record.path_of(NAME).exists() else {}
    for key, facts in after["runs"].items():
        was = before["runs"].get(key)
        same = {"same": was == facts, "before": before["commit"], "after": after["commit"]}
        kept[key] = {**same, "facts": facts, **({} if was == facts else {"facts_before": was})}
    record.keep(NAME, {"runs": kept})


if __name__ == "__main__":
    main()
