"""The two loaders side by side: speed, agreement, memory, and whether DALI feeds a training step.

    python -m benchmarks.pipelines                     (about 8 minutes on 2 cores; a quiet machine)
    python -m benchmarks.pipelines --only speed        (a quick look: replaces no figures)
    python -m benchmarks.pipelines --images DIR        (speed on your own, train/CLASS/*.jpg: added to the figures)
    python -m benchmarks.pipelines --page              (the page and the figure anew, from the JSON)

The data are crops of two real photographs (pipelines/tools/sample_images.py), made anew in a temporary folder.
Everything is restricted to `--threads` cores, with as many threads or worker processes. Rounds of the ways compared
take turns.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness import record, script
from benchmarks.harness.page import filled
from benchmarks.harness.plot import plt, save
from benchmarks.harness.record import PAGES, Result
from benchmarks.parts.pipelines.agreement import agreement
from benchmarks.parts.pipelines.bench import TINY, Amount, Bench
from benchmarks.parts.pipelines.feed import feed
from benchmarks.parts.pipelines.memory import resident
from benchmarks.parts.pipelines.speed import photographs, speed
from pipelines.common.command_line import at_least_1
from pipelines.common.torchvision_ops import import_torchvision

NAME = "pipelines"
FIGURE = "pipeline-memory.svg"
OWN_PARTS: dict[str, Callable[[Bench], Result]] = {"photographs": photographs}
PARTS: dict[str, Callable[[Bench], Result]] = {
    "speed": speed,
    "agreement": agreement,
    "memory": resident,
    "feed": feed,
}
OWN = "pipelines_photographs"
"""The record of `photographs`, which needs images of one's own."""
LOADERS = {"dali": "data.loader=dali", "torch": "data.loader=torch"}
WAYS = {
    **LOADERS,
    "torchvision": "torchvision's recipe (ImageFolder, PIL, v2 transforms, DataLoader)",
    "dali, shards": "data.loader=dali, from WebDataset shards",
}


def main() -> None:
    asked = parse()
    if asked.page:
        with script.told():
            write_page(asked.output)
        return
    with script.told():
        result = measure(asked)
    if asked.images is not None:
        write_page(asked.output)
        return
    print(page({**record.described(NAME, result), "link": f"{NAME}.json"}))


def parse() -> Namespace:
    parser = script.page_parser(__doc__)
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=at_least_1, default=len(os.sched_getaffinity(0)), help="cores (all)")
    parser.add_argument("--images", metavar="DIR", type=Path, help="measure only the speed on these images")
    return parser.parse_args()


def measure(asked: Namespace) -> Result:
    """Measure part by part, and keep what there is so far. A quick look replaces no figures."""
    cores = sorted(os.sched_getaffinity(0))[: asked.threads]
    os.sched_setaffinity(0, cores)  # Whatever this process starts inherits it.
    torch.set_num_threads(1)
    import_torchvision()
    result: Result = {"libraries": libraries(), "cores_used": len(cores)}
    with TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), TINY if asked.tiny else Amount(), len(cores), asked.images)
        if asked.images is not None:
            own = {**result, **noted("photographs", bench)}
            record.keep(OWN, own, asked.output, "python -m benchmarks.pipelines --images DIR")
            return own
        for name in asked.only or PARTS:
            result[name] = noted(name, bench)
            if asked.output or not (asked.tiny or asked.only):
                record.keep(NAME, result, asked.output)
                write_page(asked.output)
    return result


def libraries() -> dict[str, str]:
    distributions = packages_distributions()
    dali = next(name for name in distributions["nvidia"] if name.startswith("nvidia-dali-cuda"))
    return {name: version(name) for name in (dali, "torchvision", "pillow")}


def noted(name: str, bench: Bench) -> Result:
    """Return a part's numbers, with the load average before it and its seconds."""
    load, began = record.load(), time.perf_counter()
    found = {**PARTS, **OWN_PARTS}[name](bench)
    seconds = time.perf_counter() - began
    print(f"{name}: {seconds:.0f} s, load average before it {load:.2f}", file=sys.stderr, flush=True)
    return {"load_before": load, "seconds": round(seconds, 1), **found}


# The page


def own_of(folder: Path | None) -> Result | None:
    """Return the figures of images of one's own, if there are any."""
    return record.kept(OWN, folder) if record.path_of(OWN, folder).exists() else None


def page(content: Result, own: Result | None = None) -> str:
    loads = ", ".join(f"{name} {content[name]['load_before']}" for name in PARTS if name in content)
    parts = {name: content.get(name) for name in PARTS}
    versions = {**content["versions"], **content["libraries"]}
    return filled(
        NAME, content, parts, LOADERS=LOADERS, WAYS=WAYS, FIGURE=FIGURE, loads=loads, versions=versions, own=own
    )


def write_page(folder: Path | None) -> None:
    """Write the page and the figure, from the JSON alone."""
    script.write_page(NAME, lambda content: page(content, own_of(folder)), folder)
    content = record.kept(NAME, folder)
    if "memory" in content:
        draw_memory(content["memory"], (folder or PAGES) / FIGURE)


def draw_memory(found: Result, path: Path) -> None:
    """Draw a line a loader and kind of memory, from zero: a leak would be seen as what it is."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for (loader, title), marker in zip(LOADERS.items(), "os", strict=True):
        epochs: list[Result] = found[loader]["by_epoch"]
        for key, style in (("rss_mib", "-"), ("pss_mib", "--")):
            points = [(i, epoch[key]) for i, epoch in enumerate(epochs, 1) if epoch[key] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, marker=marker, label=f"{title}, {key[:3].upper()}")
    axes.set(xlabel="epoch", ylabel="resident memory, MiB", ylim=(0, None), title="Memory of training and evaluation")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    save(figure, path)


if __name__ == "__main__":
    main()
