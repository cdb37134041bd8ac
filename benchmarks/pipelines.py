"""The two loaders side by side: speed, agreement, memory, and whether DALI feeds a training step.

    python -m benchmarks.pipelines                     (about 8 minutes on 2 cores; a quiet machine)
    python -m benchmarks.pipelines --only speed        (a quick look: replaces no figures)
    python -m benchmarks.pipelines --page              (the page and the figure anew, from the JSON)

The data are crops of two real photographs (pipelines/tools/sample_images.py), made anew in a temporary folder.
Everything is restricted to `--threads` cores, with as many threads or worker processes. Rounds of the ways compared
take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib

matplotlib.use("Agg")  # No display is needed.

import torch
from matplotlib import pyplot as plt

from benchmarks.harness import record
from benchmarks.harness.page import spread, table
from benchmarks.harness.record import PAGES
from benchmarks.parts.pipelines.measures import PARTS, TINY, Amount, Bench, Result
from pipelines.common.torchvision_ops import import_torchvision

NAME = "pipelines"
FIGURE = "pipeline-memory.svg"
LOADERS = {"dali": "data.loader=dali", "torch": "data.loader=torch"}
WAYS = {
    **LOADERS,
    "torchvision": "torchvision's recipe (ImageFolder, PIL, v2 transforms, DataLoader)",
    "dali, shards": "data.loader=dali, from WebDataset shards",
}


def main() -> None:
    arguments = parse()
    if arguments.page:
        folder = arguments.output or record.RESULTS
        write_page(folder / f"{NAME}.json", arguments.output or PAGES)
        return
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)  # Whatever this process starts inherits it.
    torch.set_num_threads(1)
    import_torchvision()
    result: Result = {"libraries": libraries(), "cores_used": len(cores)}
    with TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), TINY if arguments.tiny else Amount(), len(cores))
        for name in arguments.only or PARTS:
            result[name] = noted(name, bench)
            keep(result, arguments)
    print("\n\n".join(tables(result)))


def keep(result: Result, arguments: argparse.Namespace) -> None:
    """What there is so far. A quick look replaces no figures."""
    if arguments.output or not (arguments.tiny or arguments.only):
        command = shlex.join(["python", "-m", "benchmarks.pipelines", *sys.argv[1:]])
        write_page(record.keep(NAME, command, result, arguments.output), arguments.output or PAGES)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores (all)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page and the figure anew")
    return parser.parse_args()


def libraries() -> dict[str, str]:
    dali = next(name for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120") if _there(name))
    return {name: version(name) for name in (dali, "torchvision", "pillow")}


def _there(package: str) -> bool:
    try:
        version(package)
    except ImportError:
        return False
    return True


def noted(name: str, bench: Bench) -> Result:
    """A part's numbers, with how busy the machine was before it (load average of the last minute) and its time."""
    load, began = os.getloadavg()[0], time.perf_counter()
    found = PARTS[name](bench)
    seconds = time.perf_counter() - began
    print(f"{name}: {seconds:.0f} s, load average before it {load:.2f}", file=sys.stderr, flush=True)
    return {"load_before": round(load, 2), "seconds": round(seconds, 1), **found}


# The page


def tables(content: Result) -> list[str]:
    """Paragraphs of the parts that were measured."""
    texts = {"speed": speed_text, "agreement": agreement_text, "memory": memory_text, "feed": feed_text}
    return [paragraph for name, text in texts.items() if name in content for paragraph in text(content[name])]


def speed_text(found: Result) -> list[str]:
    by_way = table(
        ["training pipeline", "images/s", "CPU ms an image"],
        [
            [title, spread(found["images_per_second"][way], 0), spread(found["cpu_ms_per_image"][way], 2)]
            for way, title in WAYS.items()
        ],
    )
    ratios = table(
        ["ratio, by round", "of images/s", "of CPU time"],
        [[name, spread(ratio, 2), spread(found["cpu_ratios"][name], 2)] for name, ratio in found["ratios"].items()],
    )
    stages = found["stages_cpu_ms_per_image"]
    where = table(
        ["CPU ms an image, one thread", *LOADERS.values()],
        [[stage, *(f"{stages[loader][stage]:.2f}" for loader in LOADERS)] for stage in stages["dali"]],
    )
    return [
        "## Speed",
        (
            f"Random resized crops at {found['image_size']} px in batches of {found['batch']} on {found['threads']} "
            f"cores, with {found['threads']} threads or worker processes; median of {found['rounds']} rounds of "
            f"{found['images_per_round']:,} images that take turns, and the least and the most. The files are about "
            f"500x375 pixels and {found['mean_file_kb']:.0f} kB: they are smooth, so decoding takes less of the time "
            "than with ImageNet's of about 110 kB."
        ),
        by_way,
        ratios,
        (
            "Where the time goes. DALI decodes no more than the window. Its resize with antialiasing is scalar code on "
            "the CPU, where torch's for uint8 is vectorised, and costs about what that saves, or more. These pipelines "
            "end on the CPU; on a GPU DALI decodes and resizes there, which is not measured here."
        ),
        where,
    ]


def agreement_text(found: Result) -> list[str]:
    rows = [
        [
            kind,
            f"{one['images']:,}",
            f"{one['grey_levels']['max']:.2f}",
            f"{one['grey_levels']['mean']:.3f}",
            f"{one['normalised']['max']:.4f}",
            f"{one['normalised']['mean']:.5f}",
            f"{100 * one['share_over_1_level']:.3f} %",
        ]
        for kind, one in found["tensors"].items()
    ]
    head = ["files", "images", "max, grey levels", "mean", "max, normalised", "mean", "over 1 grey level"]
    net = found["network"]
    accuracy = table(
        ["evaluated through", "top-1", "loss"],
        [[title, f"{net[loader]['top1']:.2f} %", f"{net[loader]['loss']:.4f}"] for loader, title in LOADERS.items()],
    )
    return [
        "## Agreement",
        (
            "Evaluation tensors of `data.loader=dali` less those of `data.loader=torch`, of the same images in many "
            "sizes. Of PNG both decode the same pixels, so what is left there is the resize: both round to whole "
            "grey levels, DALI at its end, torch after each direction. A JPEG row like the PNG row says that both "
            "decode JPEG alike, too."
        ),
        table(head, rows),
        (
            f"A ResNet-18 trained at 48 px for {net['epochs']} epochs through DALI and evaluated through both: a "
            f"difference of {abs(net['difference_in_points']):.2f} points of top-1; {net['predictions_that_differ']} "
            f"of {net['dali']['images']:,} predictions differ."
        ),
        accuracy,
    ]


def memory_text(found: Result) -> list[str]:
    rows = [
        [
            title,
            *(_mb(found[loader]["by_epoch"][i]["rss_mb"], 0) for i in (0, len(found[loader]["by_epoch"]) - 1)),
            _mb(found[loader].get("rss_mb_slope_mb_per_epoch"), 3),
            _mb(found[loader]["by_epoch"][-1]["pss_mb"], 0),
            _mb(found[loader].get("pss_mb_slope_mb_per_epoch"), 3),
        ]
        for loader, title in LOADERS.items()
    ]
    head = ["loader", "RSS, epoch 1", f"RSS, epoch {found['epochs']}", "MB an epoch", "PSS at the end", "MB an epoch"]
    return [
        "## Memory",
        (
            f"Resident memory in MB over {found['epochs']} epochs of training and evaluation on {found['images']:,} "
            "images of many sizes, worker processes included: RSS counts a page that processes share once for each, "
            "PSS once. The slope is that of a line from epoch 5 on."
        ),
        table(head, rows),
        f"![Resident memory by epoch]({FIGURE})",
    ]


def _mb(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def feed_text(found: Result) -> list[str]:
    rows = [[way, spread(rate, 1)] for way, rate in found["images_per_second"].items()]
    cpu = (
        " A CPU that computes the network is slow and shares its cores with the pipeline: this says that the script "
        "runs, and nothing about a GPU." * (found["device"] == "cpu")
    )
    return [
        "## Feeding a training step",
        (
            f"A ResNet-50 in bfloat16 and channels last on {found['device']}, {found['image_size']} px, batch "
            f"{found['batch']}: fed by DALI it makes {spread(found['ratio'], 2)} of the images/s that it makes on one "
            f"batch that is there already.{cpu}"
        ),
        table(["training step", "images/s"], rows),
    ]


def write_page(path: Path, folder: Path) -> None:
    """The page and the figure, from the JSON alone."""
    content: Result = json.loads(path.read_text())
    machine = content["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in {**content["versions"], **content["libraries"]}.items())
    loads = ", ".join(f"{name} {content[name]['load_before']}" for name in PARTS if name in content)
    made = (
        f"Made by `{content['command']}` on {content['cores_used']} of {machine['cores']} cores "
        f"({machine['processor']}) without a GPU; {versions}; commit {content['commit']}. Load average before each "
        f"part: {loads}. Figures of another machine are others. "
        f"All numbers: [{path.name}]({Path(os.path.relpath(path, folder)).as_posix()})."
    )
    if machine["gpus"]:
        made = made.replace("without a GPU", f"with {', '.join(machine['gpus'])}")
    title = "# DALI and torch side by side"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.md").write_text("\n\n".join([title, *tables(content), "## How it was made", made]) + "\n")
    if "memory" in content:
        draw_memory(content["memory"], folder / FIGURE)


def draw_memory(found: Result, path: Path) -> None:
    """A line a loader and kind of memory, from zero: a leak would be seen as what it is."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for (loader, title), marker in zip(LOADERS.items(), "os", strict=True):
        epochs: list[dict[str, Any]] = found[loader]["by_epoch"]
        for key, style in (("rss_mb", "-"), ("pss_mb", "--")):
            points = [(i, epoch[key]) for i, epoch in enumerate(epochs, 1) if epoch[key] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, marker=marker, label=f"{title}, {key[:3].upper()}")
    axes.set(xlabel="epoch", ylabel="resident memory, MB", ylim=(0, None), title="Memory of training and evaluation")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    # No date and fixed ids, so that drawing anew changes nothing.
    with matplotlib.rc_context({"svg.hashsalt": "dynsparse"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
