"""Cost of being sparse on more ranks: measured on a few processes, computed for many GPUs.

    python -m benchmarks.scaling               (about 2 1/2 minutes on 2 cores; a quiet machine)
    python -m benchmarks.scaling --page        (the tables of docs/scaling.md anew, from the JSON)

Processes of one thread each, which talk over gloo and the loopback device. Training steps through the Trainer, with the
sparse parts timed; reallocations of made-up networks, with what is handed to torch.distributed counted; all numbers of
processes in turn. What 8 to 1,024 GPUs would add is computed from the bytes and calls counted and from assumptions that
stand with the tables.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial

from benchmarks.harness import script
from benchmarks.harness.page import fill_marks, filled
from benchmarks.harness.record import ROOT, Result, kept
from benchmarks.parts.scaling.computed import GPUS, LINKS, PERIOD, exchanges, extrapolated, growing, plan_of
from benchmarks.parts.scaling.sizes import resnet50
from benchmarks.parts.scaling.traffic import traffic
from benchmarks.parts.scaling.training import training
from benchmarks.parts.scaling.worker import Amount, Case, Subject

PAGE = ROOT / "docs" / "scaling.md"
TINY = Amount(
    subjects={
        "small": Subject({"name": "cifar10_WideResNet", "depth": 10, "widen_factor": 0.5}, 8, 10, 0.02, target_moves=50)
    },
    batch=2,
    period=2,
    steps=2,
    training_ranks=(1, 2),
    cases=(Case(3, 4), Case(7, 4), Case(3, 8)),
    traffic_ranks=(1, 2, 3, 4),
    repeats=2,
    calls=3,
    rounds=1,
)
PARTS: Mapping[str, str] = {
    "scaling-training": "What a step spends on being sparse",
    "scaling-traffic": "What a reallocation says to the others",
    "scaling-flags": "Small collectives by the number of processes",
    "scaling-reallocation": "One reallocation's traffic on many GPUs",
    "scaling-growth": "What else grows",
    "scaling-made": "How it was made",
}
"""Titles of the parts, which stand between comments of these names in docs/scaling.md."""


def main() -> None:
    script.run("scaling", script.page_parser(__doc__), measure, page, fill_page)


def measure(asked: Namespace) -> Result:
    amount = TINY if asked.tiny else Amount()
    parts = {"training": training(amount), **traffic(amount), "resnet50": resnet50()}
    return {"tiny": asked.tiny, "amount": asdict(amount), **parts}


def part(name: str, content: Result) -> str:
    sizes = content["resnet50"]
    constants = {"LINKS": LINKS, "GPUS": GPUS, "PERIOD": PERIOD}
    functions = {"growing": growing(sizes), "exchanges": exchanges, "calls_of": calls_of, "bytes_of": bytes_of}
    computed = partial(extrapolated, content["cases"], sizes["layers_if_all"])
    text = filled(name, content, constants, functions, plan=plan_of(content["cases"]), computed=computed)
    warning = "**Made with `--tiny`: what was timed here means nothing.**\n\n" if content["tiny"] else ""
    return warning + text


def calls_of(found: Result) -> str:
    return over_ranks(sum(map(len, sent.values())) for sent in found["sent"])


def bytes_of(found: Result) -> str:
    return over_ranks(sum(map(sum, sent.values())) for sent in found["sent"])


def over_ranks(counts: Iterable[int]) -> str:
    """Write one number where all ranks have the same."""
    found = set(counts)
    return " to ".join(f"{count:,}" for count in sorted({min(found), max(found)}))


def page(content: Result) -> str:
    """Return a page of all parts, for another folder."""
    return "\n\n".join(["# Scaling", *(f"## {title}\n\n{part(name, content)}" for name, title in PARTS.items())])


def kept_parts() -> dict[str, Callable[[], str]]:
    """The parts of docs/scaling.md, from the kept figures."""
    return {name: partial(kept_part, name) for name in PARTS}


def kept_part(name: str) -> str:
    return part(name, kept("scaling"))


def fill_page() -> None:
    PAGE.write_text(fill_marks(PAGE, kept_parts()))


if __name__ == "__main__":
    main()
