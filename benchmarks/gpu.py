"""Checks and measurements of all that needs a GPU, in one go.

    python -m benchmarks.gpu                            (on a GPU: 8 minutes at most)
    python -m benchmarks.gpu --only nccl steps          (these parts alone)
    python -m benchmarks.gpu --photographs DIR          (of one's own, train/ and val/, in place of made ones)
    python -m benchmarks.gpu --page                     (the page anew, from the JSON)
    python -m benchmarks.gpu --cifar10 DIR              (the paper's WRN-28-2, 90 % sparse, 200 epochs)
    python -m benchmarks.gpu --imagenette DIR           (ResNet-18 at 128 px, five methods)

Each part has a process of its own and some seconds, so that one that fails or hangs takes no other with it; what is
found is on disk after each. Without a GPU it runs tiny on the CPU, so that it cannot rot, and keeps no figures unless
told where. It ends with 1 if a part fails or what must be so is not; a speed that is not reached is no failure.

The last two make tables of `benchmarks.reproduce`, with its files and pages, from train/ and test/ or val/ in DIR; of
CIFAR-10, DIR may hold cifar-10-batches-py. A call that is cut is finished by the next. The files go to --output if it
is given, runs included.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks import reproduce
from benchmarks.harness import record, script
from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.parts.gpu.bench import Bench, Found, Row
from benchmarks.parts.gpu.data import dali
from benchmarks.parts.gpu.gradients import nccl
from benchmarks.parts.gpu.machine import environment
from benchmarks.parts.gpu.overlap import overlap
from benchmarks.parts.gpu.precision import amp, memory, recompiles
from benchmarks.parts.gpu.profiling import profiles
from benchmarks.parts.gpu.reallocation import reallocation
from benchmarks.parts.gpu.resuming import checkpoints
from benchmarks.parts.gpu.sparse_kernels import semi_structured
from benchmarks.parts.gpu.training import training_steps
from benchmarks.parts.gpu.two_ranks import two_ranks

NAME = "gpu"
Part = Callable[[Bench, Found], None]
PARTS: Mapping[str, tuple[Part, int]] = {
    "environment": (environment, 15),
    "nccl": (nccl, 25),
    "two_ranks": (two_ranks, 35),
    "amp": (amp, 20),
    "reallocation": (reallocation, 60),
    "checkpoint": (checkpoints, 25),
    "dali": (dali, 45),
    "recompiles": (recompiles, 35),
    "memory": (memory, 20),
    "semi_structured": (semi_structured, 20),
    "profile": (profiles, 20),
    "overlap": (overlap, 60),
    "steps": (training_steps, 100),
}
"""Parts with the seconds that each may take, its start included: what must be right comes first, then speed.

The last has also what the others leave of all.
"""
SECONDS = 480
LAST_SECONDS = 10
"""Seconds after its own, in which a part may still say what it was doing."""

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.parts.gpu.training", "benchmarks.parts.gpu.reallocation"])


def main() -> None:
    parser = script.page_parser(__doc__)
    parser.add_argument("--only", metavar="PART", nargs="+", choices=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--photographs", metavar="DIR", type=Path, help="read these images where photographs are read")
    parser.add_argument("--cifar10", metavar="DIR", type=Path, help="measure nothing; train WRN-28-2 on these images")
    parser.add_argument("--imagenette", metavar="DIR", type=Path, help="measure nothing; train ResNet-18 on these")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the configs of these runs")
    asked = parser.parse_intermixed_args()
    if asked.cifar10 or asked.imagenette:
        if asked.page or asked.only or asked.photographs:
            parser.error("--page, --only and --photographs are for the checks, not for --cifar10 and --imagenette")
        if asked.tiny and asked.output is None:
            parser.error("--tiny makes other runs than those that are kept; give a folder with --output")
        make_tables(asked)
        return
    if asked.overrides:
        parser.error("overrides are for --cifar10 and --imagenette")
    if asked.page:
        with script.told():
            script.write_page(NAME, page, asked.output)
        return
    result = measure(asked)
    print("\n\n".join(paragraphs(result)))
    if not all_is_well(result):
        sys.exit(1)


def make_tables(asked: Namespace) -> None:
    """Train on real images. Each run has the GPU, or with small ones a share of it."""
    packed = asked.cifar10 is not None and (asked.cifar10 / "cifar-10-batches-py").is_dir()
    tables: dict[str, tuple[Path | None, list[str]]] = {
        f"cifar10_wrn28{'_originals' if packed else ''}": (
            asked.cifar10,
            ["--methods", "dsr", "--workers-at-once", "1"],
        ),
        "imagenette_128": (asked.imagenette, ["--workers-at-once", "2"]),
    }
    for name, (images, options) in tables.items():
        if images is not None:
            if asked.output is not None:
                options += ["--out", str(asked.output), "--work", str(asked.output / name)]
            options += ["--epochs", "1"] if asked.tiny else []
            reproduce.main(["--data", name, *options, f"data.path={images.absolute()}", *asked.overrides])


def measure(asked: Namespace) -> Result:
    """Run part by part, and keep what there is so far."""
    on_gpu, began = torch.cuda.is_available(), time.monotonic()
    keeps = asked.output is not None or (on_gpu and not asked.tiny and not asked.only)
    result: Result = {"on_gpu": on_gpu, "tiny": asked.tiny or not on_gpu, "load_before": record.load(), "parts": {}}
    for name in asked.only or PARTS:
        seconds = PARTS[name][1]
        if name == list(PARTS)[-1]:
            seconds = max(seconds, round(SECONDS - (time.monotonic() - began)))
        result["parts"][name] = run_part(name, seconds, tiny=result["tiny"], photographs=asked.photographs)
        print(f"{name}: {result['parts'][name]['state']}", file=sys.stderr, flush=True)
        if keeps:
            script.keep(NAME, result, page, asked.output)
    return result


# A part in a process of its own


def run_part(name: str, seconds: int, *, tiny: bool, photographs: Path | None = None) -> Result:
    """Run a part. Returns what it found, its state ("done", "failed" or "not in time") and, if it failed, its error."""
    began = time.monotonic()
    seconds *= 5 if tiny else 1  # A CPU that others share may take long over a little.
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_part_main, args=(name, tiny, seconds, theirs, photographs))
    process.start()
    theirs.close()
    try:
        answer: Result = ours.recv() if ours.poll(seconds + LAST_SECONDS) else {"state": "not in time"}
        process.join(LAST_SECONDS if answer["state"] == "done" else 0)
    except EOFError:
        process.join(LAST_SECONDS)
        answer = {"state": "failed", "error": f"the process ended with exit code {process.exitcode}\n"}
    finally:
        process.kill()
        process.join()
    return {"rows": [], "figures": {}, **answer, "seconds": round(time.monotonic() - began, 1)}


def _part_main(name: str, tiny: bool, seconds: int, pipe: Connection, photographs: Path | None = None) -> None:
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    # Some seconds before the end, so that what has been measured is summed up by then.
    bench, found = Bench(device, tiny, time.monotonic() + 0.9 * seconds, photographs), Found()
    answer: Result = {"state": "done"}
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(seconds)
    try:
        PARTS[name][0](bench, found)
    except _TooLate:
        answer = {"state": "not in time", "error": traceback.format_exc()}
    except Exception:  # noqa: BLE001 - the other parts are to run, whatever it is
        answer = {"state": "failed", "error": traceback.format_exc()}
    signal.alarm(0)
    # As text: what a part measured may be tensors of a device that has failed.
    pipe.send({**answer, "rows": [row._asdict() for row in found.rows], "figures": found.figures})


class _TooLate(BaseException):
    """The seconds of a part are over. A compiler that takes any Exception for a fault of its own lets it pass."""


def _too_late(number: int, frame: FrameType | None) -> None:
    raise _TooLate("the seconds of this part are over")


# The page


def all_is_well(result: Mapping[str, Any]) -> bool:
    return all(part["state"] == "done" and not faults(part) for part in result["parts"].values())


def faults(part: Mapping[str, Any]) -> list[str]:
    """List what must hold and does not."""
    return [row["what"] for row in part["rows"] if row["must"] and not row["holds"]]


def page(content: Result) -> str:
    return filled("gpu", content, paragraphs=paragraphs(content))


def paragraphs(result: Mapping[str, Any]) -> list[str]:
    """The table, errors, and a warning where figures mean nothing. For the page and the terminal."""
    rows = {name: [Row(**row) for row in part["rows"]] + _state_row(part) for name, part in result["parts"].items()}
    return [filled("gpu-parts", result, rows=rows, verdict=_verdict)]


def _state_row(part: Mapping[str, Any]) -> list[Row]:
    return [Row(f"in {part['seconds']:.0f} s", part["state"], "done", part["state"] == "done", must=True)]


def _verdict(row: Row, *, tiny: bool) -> str:
    if row.holds is None or (tiny and not row.must):
        return ""
    return "holds" if row.holds else ("**FAULT**" if row.must else "missed")


if __name__ == "__main__":
    main()
