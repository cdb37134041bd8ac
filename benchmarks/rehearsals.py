"""One of up to 4,096 workers that train a ResNet-50, as `--rehearse` shows it.

    python -m benchmarks.rehearsals            (about 5 minutes on 2 cores)
    python -m benchmarks.rehearsals --page     (the table of docs/scaling.md anew, from the JSON)

The network has its full width. Images are small, and each worker gets two of them, for neither changes what is held or
sent beside activations. Everything is counted, nothing is timed.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict

from benchmarks.harness import script
from benchmarks.harness.page import fill_marks, filled
from benchmarks.harness.record import ROOT, Result, kept
from benchmarks.harness.runs import run_config
from dynsparse.config.schema import RunConfig
from dynsparse.training.rehearsal import rehearse

PAGE, NAME, MARK = ROOT / "docs" / "scaling.md", "rehearsals", "rehearsals"
WORLDS = (8, 64, 512, 1024, 4096)
METHODS: Mapping[str, Mapping[str, object]] = {
    "dsr": {"name": "dsr", "period": 2},
    "rigl": {"name": "rigl", "period": 2},
}
SAMPLES = 2
"""Samples that each worker gets of a batch: BatchNorm needs as many."""


def main() -> None:
    script.run(NAME, script.page_parser(__doc__), measure, page, fill_page)


def measure(asked: Namespace) -> Result:
    worlds = (2, 5) if asked.tiny else WORLDS
    found = [
        {"method": method, **asdict(rehearse(config_of(method, world, tiny=asked.tiny), 0, world))}
        for method in METHODS
        for world in worlds
    ]
    return {
        "tiny": asked.tiny,
        "rehearsals": [{**one, "step": _sums(one["step"]), "event": _sums(one["event"])} for one in found],
    }


def config_of(method: str, world: int, *, tiny: bool) -> RunConfig:
    """Return the config of a run on so many workers: the paper's layers at 90 %, active gradients."""
    batch = SAMPLES * world
    return run_config(
        {"name": "imagenet_resnet50", "widen_factor": 0.1 if tiny else 1.0},
        METHODS[method],
        32,
        1000,
        data={"samples": 2 * batch, "test_samples": 2, "loader": "torch"},
        train={"global_batch_size": batch, "lr": {"name": "steps", "table": {0: 0.01}}},
        distributed={"gradients": "active"},
    )


def _sums(sent: list[tuple[str, int]]) -> dict[str, dict[str, int]]:
    """Return the number of calls and their bytes in all, by call."""
    found: dict[str, dict[str, int]] = {}
    for call, size in sent:
        of_call = found.setdefault(call, {"calls": 0, "bytes": 0})
        of_call["calls"] += 1
        of_call["bytes"] += size
    return found


def page(content: Result) -> str:
    return filled(NAME, content)


def fill_page() -> None:
    PAGE.write_text(fill_marks(PAGE, {MARK: lambda: page(kept(NAME))}))


if __name__ == "__main__":
    main()
