"""Cost of a hostile image to a run: seconds until the line that names it, and memory on the way there.

    python -m benchmarks.hostile_images            (about 25 minutes on 2 cores; writes results/hostile_images.json)

A small folder of photographs is trained on in one batch, with one bomb more: an image that declares more than it is, or
something that is no file (tests/pipelines/images/hostile.py). Each run is a process of its own, with either loader, and
a scan. It must end with exit code 2 and one line with the bomb's name, within 10 processor seconds and 1 GiB of an
ordinary run: one with a few bytes of junk in the bomb's place, which ends at the same point. Seconds and memory are
those of all its processes together, pages that they share counted in each.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness.processes import Ended, watched
from benchmarks.harness.record import ROOT, Result
from benchmarks.harness.script import keep_whole, plain_parser
from pipelines.common.command_line import at_least_1
from tests.pipelines.images.hostile import BOMBS, SPECIALS, bomb
from tests.pipelines.pictures import picture

CLASSES, EACH = ("ape", "bee", "cat"), 8
MOST_SECONDS, MOST_MIB = 10.0, 1024.0
"""Limits, beyond an ordinary run."""


def photographs(folder: Path) -> Path:
    for part in ("train", "val"):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for number in range(EACH):
                image = picture(500, 375, seed=100 * label + number + 50 * (part == "val"))
                image.save(folder / part / name / f"{number}.jpg", quality=90)
    return folder


def training(folder: Path, runs: Path, loader: str) -> list[str]:
    """Return the command of a run whose one batch holds all images, so that a bomb is among the first."""
    images = len(list((folder / "train").glob("*/*")))
    options = {
        "data.path": folder, "data.loader": loader, "data.number_of_classes": len(CLASSES), "train.epochs": 2,
        "train.global_batch_size": images, "name": "hostile", "runs": runs,
    }  # fmt: skip
    given = [f"{key}={value}" for key, value in options.items()]
    config = str(ROOT / "configs" / "sample_images_resnet.yaml")
    return [sys.executable, "dist_train.py", "--config", config, "--overwrite", *given]


def scanning(folder: Path) -> list[str]:
    return [sys.executable, "-m", "pipelines", "scan", str(folder), "--workers=2"]


def laid(name: str) -> Callable[[Path], object]:
    """Return a function that puts a bomb in a place."""
    return SPECIALS[name] if name in SPECIALS else lambda path: path.write_bytes(bomb(name))


def measured(folder: Path, work: Path, names: list[str], rounds: int) -> Result:
    """Run each bomb with each loader and a scan, ordinary runs among them."""
    every: dict[str, Callable[[], list[str]]] = {
        **{loader: partial(training, folder, work / "runs", loader) for loader in ("dali", "torch")},
        "scan": partial(scanning, folder),
    }
    ordinary: dict[str, list[Ended]] = {way: [] for way in every}
    bombs: dict[str, dict[str, Ended]] = {way: {} for way in every}
    place = folder / "train" / "bee" / "bomb.jpg"

    def run(way: str, name: str, put: Callable[[Path], Any]) -> Ended:
        put(place)
        found = watched(every[way](), work / "log")
        place.unlink()
        (folder / "exclude.txt").unlink(missing_ok=True)
        if found.code != (0 if way == "scan" else 2) or "bomb.jpg" not in found.said:
            raise SystemExit(f"{way}, {name}: ended with {found.code}:\n{found.said[-2000:]}")
        print(
            f"{way:6} {name:40} {found.seconds:6.1f} s {found.cpu:6.1f} s of processors {found.mib:6.0f} MiB",
            flush=True,
        )
        return found

    for number, name in enumerate(names):
        for way in every:
            if number % max(1, len(names) // rounds) == 0:
                ordinary[way].append(run(way, "junk", lambda path: path.write_bytes(b"junk")))
            bombs[way][name] = run(way, name, laid(name))
    return {way: _compared(ordinary[way], bombs[way]) for way in every}


def _compared(ordinary: list[Ended], bombs: dict[str, Ended]) -> Result:
    """Return the differences from the median ordinary run."""
    usual = {key: statistics.median(getattr(run, key) for run in ordinary) for key in ("seconds", "cpu", "mib")}
    more = {
        name: {f"{key}_more": round(getattr(run, key) - usual[key], 1) for key in usual} | {"said": _line(run)}
        for name, run in bombs.items()
    }
    most = {f"most_{key}_more": max(found[f"{key}_more"] for found in more.values()) for key in usual}
    return {"ordinary": usual | {"runs": len(ordinary)}, "bombs": more, **most}


def _line(run: Ended) -> str:
    """Return the line about the bomb, from its name on."""
    line = next(line for line in run.said.splitlines() if "bomb.jpg" in line)
    return line[line.index("bomb.jpg") :].partition("; list all such")[0]


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--rounds", type=at_least_1, default=5, help="ordinary runs of each kind (5)")
    parser.add_argument("--only", help="bombs whose names hold one of these words, with commas between")
    asked = parser.parse_args()
    words = asked.only.split(",") if asked.only else [""]
    names = [name for name in (*BOMBS, *SPECIALS) if any(word in name for word in words)]
    with TemporaryDirectory() as folder:
        work = Path(folder)
        result = measured(photographs(work / "images"), work, names, asked.rounds)
    print(keep_whole("hostile_images", result, asked.output, whole=len(names) == len(BOMBS) + len(SPECIALS)))
    most = [max(found[key] for found in result.values()) for key in ("most_cpu_more", "most_mib_more")]
    print(f"at most {most[0]} processor seconds and {most[1]} MiB beyond an ordinary run")
    if most[0] > MOST_SECONDS or most[1] > MOST_MIB:
        sys.exit(1)


if __name__ == "__main__":
    main()
