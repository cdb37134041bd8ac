"""Digests of a run of every digits config, to see whether a change leaves runs the same, bit for bit.

    python -m benchmarks.digests record /tmp/before.json           # in the tree of before
    python -m benchmarks.digests compare /tmp/before.json          # in the tree of after

A run's digests, test accuracy and loss depend on the machine and on torch's version: compare on one machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.record import ROOT
from benchmarks.harness.script import ScriptParser

FACTS = ("mask_digest", "weight_digest", "test_top1", "active_weights", "reallocations", "steps")
DENSE = "digits_dense"


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--configs", nargs="+", default=configs())
    arguments = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    for key, facts in measured(arguments.configs, arguments.workers):
        found[key] = facts
        if arguments.action == "record":
            arguments.file.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.action == "compare":
        sys.exit(compare(json.loads(arguments.file.read_text()), found))


def configs() -> list[str]:
    """List the configs, the dense one first: pruning starts from it."""
    names = sorted(path.stem for path in (ROOT / "configs").glob("digits_*.yaml"))
    return sorted(names, key=lambda name: name != DENSE)


def measured(names: Sequence[str], workers: Sequence[int]) -> Iterator[tuple[str, dict[str, object]]]:
    """Run each config on each number of workers. Yields a key "config on n" and its facts."""
    for n in workers:
        with TemporaryDirectory() as runs:
            for name in names:
                facts = run(name, n, Path(runs))
                print(f"{name} on {n}: {facts}", flush=True)
                yield f"{name} on {n}", facts


def run(name: str, workers: int, runs: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    command += ["dist_train.py", "--config", f"configs/{name}.yaml", f"runs={runs}"]
    command += ["distributed.backend=gloo", "log.tensorboard=false", "log.progress=none", "data.threads=1"]
    if name == "digits_pruning":
        command.append(f"start.weights_from={runs}/{DENSE}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} on {workers} failed:\n{done.stderr}")
    summary = json.loads((runs / name / "summary.json").read_text())
    return {fact: summary[fact] for fact in FACTS}


def compare(before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]) -> int:
    """Print what differs. Returns how many of `after` do, or are not in `before`."""
    differing = [key for key, facts in after.items() if before.get(key) != facts]
    for key in differing:
        print(f"differs: {key}\n  before {before.get(key)}\n  after  {after[key]}")
    print(f"{len(after) - len(differing)} of {len(after)} runs are the same")
    return len(differing)


if __name__ == "__main__":
    main()
