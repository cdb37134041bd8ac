"""Names of all files in a run's folder. No other module spells them."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = "config.yaml"
METHOD = "method.py"
"""Copy of the file of a method of one's own."""
METRICS = "metrics.jsonl"
HISTORY = "history.jsonl"
SUMMARY = "summary.json"
INPUT = "input.json"
REPORT = "report.html"
LAUNCH = "launch.json"
ORIGIN = "origin.json"
"""Checksum of the checkpoint, of another place, that the run goes on from."""
LOCK = "lock.json"
OWNER = "owner.json"
EVENTS = "events.out.tfevents"
"""Beginning of TensorBoard's names, which end with the time, the host and the process."""

WANDB_ID, MLFLOW_ID = "wandb.json", "mlflow.json"
"""The run's ids at W&B and MLflow."""
WANDB = "wandb"
"""The folder of W&B's own files, sent or not. --overwrite leaves it: another run there has another id."""

PROFILES = "profile"
"""The folder of torch.profiler's traces, a file for each worker and start."""
TRACES = "rank-*.pt.trace.json.gz"
MEMORY = "memory-rank-*.pickle"
"""Snapshots of GPU memory that has run out, one a worker."""

CHECKPOINTS = "checkpoints"
"""The folder of these four kinds of file."""
LATEST, BEST, INITIAL = "latest.pt", "best.pt", "initial.pt"
STEPS = "step-*.pt"
STALE = "*.pt.stale*"
"""Checkpoints of a history that a resume has left."""

PARTIAL = "*.partial"
"""Files that were being written when their process was killed: see `files.whole`."""
CLAIMS = "lock-*.partial"
"""Locks of dead runs that a start is about to remove."""

WRITTEN_WHOLE = (ORIGIN, LAUNCH, CONFIG, METHOD, METRICS, SUMMARY, INPUT, WANDB_ID, MLFLOW_ID)
"""Files that take their name in one step: a kill may leave a partial file beside each."""

FROM_START = (LOCK, OWNER, f"{OWNER}.{PARTIAL}", CLAIMS, f"{LAUNCH}.{PARTIAL}", f"{ORIGIN}.{PARTIAL}")
"""Patterns of what lies in the folder before a run has taken it."""

_STEP_FILE = re.compile(r"step-(\d{9})\.pt")


def claim(mark: str) -> str:
    """Name of a lock that is about to be removed."""
    return CLAIMS.replace("*", mark)


def damaged(name: str) -> str:
    """Name of the file that takes the damaged lines of a log."""
    return f"{name}.damaged"


def trace(rank: int, step: int) -> str:
    """Name of a worker's trace that begins after `step`, such as rank-0.7.pt.trace.json.gz."""
    return TRACES.replace("*", f"{rank}.{step}")


def memory(rank: int) -> str:
    """Name of a worker's snapshot of GPU memory."""
    return MEMORY.replace("*", str(rank))


def of_step(step: int) -> str:
    """Name of the checkpoint after `step`, such as step-000000123.pt."""
    return f"step-{step:09d}.pt"


def step_in(path: Path) -> int | None:
    """Return the step in such a name; None for other names."""
    match = _STEP_FILE.fullmatch(path.name)
    return int(match[1]) if match else None


OVERWRITTEN = (
    LAUNCH,
    METHOD,
    *(f"{name}.{PARTIAL}" for name in WRITTEN_WHOLE),
    *(f"{CHECKPOINTS}/{name}" for name in ("*.pt", STALE, PARTIAL)),
    HISTORY,
    damaged(HISTORY),
    REPORT,
    METRICS,
    damaged(METRICS),
    SUMMARY,
    INPUT,
    WANDB_ID,
    MLFLOW_ID,
    f"{PROFILES}/{TRACES}",
    f"{PROFILES}/{TRACES}.{PARTIAL}",
    MEMORY,
    f"{EVENTS}.*",
    ORIGIN,
)
"""Patterns of what --overwrite removes: all that a run writes, but the config, which is replaced, and the lock."""
