"""A shrink on several workers, beside their steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.harness.record import ROOT, Result
from benchmarks.harness.rounds import summary
from benchmarks.parts.shrinking.cases import SHRUNK, Case


def on_workers(case: Case, workers: int, runs: int) -> Result:
    """Return how long shrinks take, in steps of the epoch before each and of the epoch after it."""
    found = [one for seed in range(runs) for one in _of_run(case, workers, seed)]
    steps = {key: summary([one["seconds"] / one[key] for one in found]) for key in ("step_before", "step_after")}
    return {"workers": workers, "shrinks": found, "in_steps": steps}


def _of_run(case: Case, workers: int, seed: int) -> list[Result]:
    """Train on so many workers; return seconds of each shrink, and of a step before and after it."""
    with TemporaryDirectory() as folder:
        document = case.config(SHRUNK, seed).model_dump(mode="json", exclude_unset=True)
        document |= {"name": "run", "runs": folder}
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(document))
        command = ["bash", "launch/local.sh", "--workers", str(workers), "--", "--config", str(config)]
        environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with code {done.returncode}: {done.stderr}")
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    epochs = {
        line["epoch"]: case.batch / line["timing"]["images_per_second"] for line in lines if line["kind"] == "epoch"
    }
    return [
        {
            "seconds": line["timing"]["seconds"],
            "step_before": epochs[line["epoch"] - 1],
            "step_after": epochs[line["epoch"]],
        }
        for line in lines
        if line["kind"] == "shrink"
    ]
