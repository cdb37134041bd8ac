"""All that needs a GPU, checked and measured in one go.

    python -m benchmarks.gpu                            (on a GPU: 8 minutes at most)
    python -m benchmarks.gpu --only nccl steps          (these parts alone)
    python -m benchmarks.gpu --page                     (the page anew, from the JSON)

Each part has a process of its own and some seconds, so that one that fails or hangs takes no other with it; what is
found is on disk after each. Without a GPU it runs tiny on the CPU, so that it cannot rot, and keeps no figures unless
told where. It ends with 1 if a part fails or what must be so is not; a speed that is not reached is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.harness import record
from benchmarks.harness.page import table
from benchmarks.harness.record import PAGES
from benchmarks.parts.gpu import checks as gpu_parts
from benchmarks.parts.gpu.bench import Bench, Found, Row
from benchmarks.parts.gpu.reallocation import reallocation

NAME = "gpu"
Part = Callable[[Bench, Found], None]
PARTS: Mapping[str, tuple[Part, int]] = {
    "environment": (gpu_parts.environment, 20),
    "nccl": (gpu_parts.nccl, 40),
    "amp": (gpu_parts.amp, 30),
    "reallocation": (reallocation, 100),
    "memory": (gpu_parts.memory, 30),
    "checkpoint": (gpu_parts.checkpoints, 30),
    "recompiles": (gpu_parts.recompiles, 40),
    "dali": (gpu_parts.dali, 30),
    "steps": (gpu_parts.training_steps, 160),
}
"""With the seconds that each may take, its start included. The last has also what the others leave of all."""
SECONDS = 480
LAST_SECONDS = 10
"""After its own, in which a part may still say what it was doing."""
Result = dict[str, Any]

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.parts.gpu.checks", "benchmarks.parts.gpu.reallocation"])


def main() -> None:
    arguments = parse()
    on_gpu = torch.cuda.is_available()
    keeps = arguments.output is not None or (on_gpu and not arguments.tiny and not arguments.only)
    folder: Path = arguments.output or record.RESULTS
    path = folder / f"{NAME}.json"
    if not arguments.page:
        command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
        result: Result = {"on_gpu": on_gpu, "tiny": arguments.tiny or not on_gpu, "load_before": os.getloadavg()[0]}
        result["parts"] = {}
        began = time.monotonic()
        for name in arguments.only or PARTS:
            seconds = PARTS[name][1]
            if name == list(PARTS)[-1]:
                seconds = max(seconds, round(SECONDS - (time.monotonic() - began)))
            result["parts"][name] = run_part(name, seconds, tiny=result["tiny"])
            print(f"{name}: {result['parts'][name]['state']}", file=sys.stderr, flush=True)
            if keeps:
                record.keep(NAME, command, result, arguments.output)
        print("\n\n".join(paragraphs(result)))
    if keeps or arguments.page:
        write_page(path, arguments.output or PAGES)
    if not arguments.page and not all_is_well(result):
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART", nargs="+", choices=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="on a GPU too: figures without meaning")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")
    return parser.parse_args()


# A part in a process of its own


def run_part(name: str, seconds: int, *, tiny: bool) -> Result:
    """What it found, its state ("done", "failed" or "not in time") and, if it failed, its error."""
    began = time.monotonic()
    seconds *= 5 if tiny else 1  # A CPU that others share may take long over a little.
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_part_main, args=(name, tiny, seconds, theirs))
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


def _part_main(name: str, tiny: bool, seconds: int, pipe: Connection) -> None:
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    # Some seconds before the end, so that what has been measured is summed up by then.
    bench, found = Bench(device, tiny, time.monotonic() + 0.9 * seconds), Found()
    answer: Result = {"state": "done"}
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(seconds)
    try:
        PARTS[name][0](bench, found)
    except TimeoutError:
        answer = {"state": "not in time", "error": traceback.format_exc()}
    except Exception:  # noqa: BLE001 - the other parts are to run, whatever it is
        answer = {"state": "failed", "error": traceback.format_exc()}
    signal.alarm(0)
    # As text: what a part measured may be tensors of a device that has failed.
    pipe.send({**answer, "rows": [row._asdict() for row in found.rows], "figures": found.figures})


def _too_late(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("the seconds of this part are over")


# The page


def all_is_well(result: Mapping[str, Any]) -> bool:
    return all(part["state"] == "done" and not faults(part) for part in result["parts"].values())


def faults(part: Mapping[str, Any]) -> list[str]:
    """What must be so and is not."""
    return [row["what"] for row in part["rows"] if row["must"] and not row["holds"]]


def paragraphs(result: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, row.what, row.found, row.wanted, _verdict(row, tiny=result["tiny"])]
        for name, part in result["parts"].items()
        for row in [Row(**row) for row in part["rows"]] + _state_row(part)
    ]
    text = [table(["part", "what", "found", "wanted", ""], rows)]
    if not result["on_gpu"]:
        text.insert(0, "**No figure here is a GPU's: this ran on a CPU, tiny, to see that it runs.**")
    elif result["tiny"]:
        text.insert(0, "**Tiny: no figure here has a meaning.**")
    return text + [
        f"`{name}` {part['state']}:\n\n```\n{part['error']}```"
        for name, part in result["parts"].items()
        if "error" in part
    ]


def _state_row(part: Mapping[str, Any]) -> list[Row]:
    return [Row(f"in {part['seconds']:.0f} s", part["state"], "done", part["state"] == "done", must=True)]


def _verdict(row: Row, *, tiny: bool) -> str:
    if row.holds is None or (tiny and not row.must):
        return ""
    return "holds" if row.holds else ("**FAULT**" if row.must else "missed")


def write_page(path: Path, folder: Path) -> None:
    """From the JSON alone."""
    content = json.loads(path.read_text())
    machine = content["machine"]
    intro = (
        "What only a GPU can show. Times are medians over rounds in which all ways of a kind take turns, in one "
        "process and with nothing left to do on the GPU before and after; ratios are taken within a round. Images and "
        "labels are random, on the GPU before the step, the same two batches over and over: nothing here says how "
        "fast data come. *Dense* is the same network without masks; *multiplied* is a dense one whose weights a "
        "float mask multiplies in every forward pass. A step of at most 1.02 is at least 0.98 of the images a second. "
        "With one GPU nothing travels: the steps with `dense` and "
        "`active` gradients differ by the packing alone. A reallocation is timed with the look at the gradients "
        "before it and their masking, which every step has; weights are normally distributed, and so many lie below "
        "the threshold as are to move."
    )
    made = (
        f"Made by `{content['command']}` on {', '.join(machine['gpus']) or 'no GPU'}, {machine['cores']} cores "
        f"({machine['processor']}), load average before it {content['load_before']:.2f}; "
        f"{', '.join(f'{k} {v}' for k, v in content['versions'].items())}; commit {content['commit']}. Figures of "
        f"another machine are others. All numbers: [{path.name}]({Path(os.path.relpath(path, folder)).as_posix()})."
    )
    parts: Sequence[str] = ["# On a GPU", intro, *paragraphs(content), "## How it was made", made]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
