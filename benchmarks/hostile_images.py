"""What a hostile image costs a run: seconds until the line that names it, and memory on the way there.

    python -m benchmarks.hostile_images            (about 25 minutes on 2 cores; writes results/hostile_images.json)

A small folder of photographs is trained on in one batch, with one bomb more: an image that declares more than it is, or
something that is no file (tests/pipelines/hostile.py). Each run is a process of its own, with either loader, and a
scan. It must end with exit code 2 and one line with the bomb's name, within 10 processor seconds and 1 GB of an
ordinary run: one with a few bytes of junk in the bomb's place, which ends at the same point. Seconds and memory are
those of all its processes together, pages that they share counted in each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.harness.record import ROOT, keep
from tests.pipelines.images.hostile import BOMBS, SPECIALS, bomb
from tests.pipelines.pictures import picture

CLASSES, EACH = ("ape", "bee", "cat"), 8
MOST_SECONDS, MOST_MB = 10.0, 1024.0
"""Beyond an ordinary run."""
Result = dict[str, Any]


class Ended(NamedTuple):
    """What a run took, and how it ended."""

    code: int
    said: str
    seconds: float
    """By the clock, to the end of the process: on a busy machine mostly the start."""
    cpu: float
    """Processor seconds of all processes."""
    mb: float


def photographs(folder: Path) -> Path:
    for part in ("train", "val"):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for number in range(EACH):
                image = picture(500, 375, seed=100 * label + number + 50 * (part == "val"))
                image.save(folder / part / name / f"{number}.jpg", quality=90)
    return folder


def training(folder: Path, runs: Path, loader: str) -> list[str]:
    """One batch holds all images, so that a bomb is among the first."""
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


def watched(command: list[str], log: Path) -> Ended:
    """Run to the end. Memory is looked at some fifty times a second."""
    began, peak = time.perf_counter(), 0
    ticks: dict[int, int] = {}
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        while process.poll() is None:
            peak = max(peak, _looked_at(process.pid, ticks))
            time.sleep(0.02)
    seconds, cpu = time.perf_counter() - began, sum(ticks.values()) / os.sysconf("SC_CLK_TCK")
    return Ended(process.returncode, log.read_text(errors="replace"), seconds, cpu, peak / 2**20)


def _looked_at(session: int, ticks: dict[int, int]) -> int:
    """Bytes of all processes of a session. Notes how long each has been running."""
    total = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
                ticks[int(entry.name)] = int(fields[11]) + int(fields[12])
    return total


def laid(name: str) -> Callable[[Path], None]:
    """Puts a bomb where it is told."""
    return SPECIALS[name] if name in SPECIALS else lambda path: path.write_bytes(bomb(name)) and None


def measured(folder: Path, work: Path, names: list[str], rounds: int) -> Result:
    """Each bomb with each loader, ordinary runs among them."""
    commands = {loader: (lambda loader=loader: training(folder, work / "runs", loader)) for loader in ("dali", "torch")}
    every: dict[str, Callable[[], list[str]]] = {**commands, "scan": lambda: scanning(folder)}
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
            f"{way:6} {name:40} {found.seconds:6.1f} s {found.cpu:6.1f} s of processors {found.mb:6.0f} MB", flush=True
        )
        return found

    for number, name in enumerate(names):
        for way in every:
            if number % max(1, len(names) // rounds) == 0:
                ordinary[way].append(run(way, "junk", lambda path: path.write_bytes(b"junk")))
            bombs[way][name] = run(way, name, laid(name))
    return {way: _compared(ordinary[way], bombs[way]) for way in every}


def _compared(ordinary: list[Ended], bombs: dict[str, Ended]) -> Result:
    """Differences from the median ordinary run."""
    usual = {key: statistics.median(getattr(run, key) for run in ordinary) for key in ("seconds", "cpu", "mb")}
    more = {
        name: {f"{key}_more": round(getattr(run, key) - usual[key], 1) for key in usual} | {"said": _line(run)}
        for name, run in bombs.items()
    }
    most = {f"most_{key}_more": max(found[f"{key}_more"] for found in more.values()) for key in usual}
    return {"ordinary": usual | {"runs": len(ordinary)}, "bombs": more, **most}


def _line(run: Ended) -> str:
    """What was said of the bomb, from its name on."""
    line = next(line for line in run.said.splitlines() if "bomb.jpg" in line)
    return line[line.index("bomb.jpg") :].partition("; list all such")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="ordinary runs of each kind (5)")
    parser.add_argument("--only", help="bombs whose names hold one of these words, with commas between")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    asked = parser.parse_args()
    names = [
        name
        for name in (*BOMBS, *SPECIALS)
        if asked.only is None or any(word in name for word in asked.only.split(","))
    ]
    with TemporaryDirectory() as folder:
        work = Path(folder)
        result = measured(photographs(work / "images"), work, names, asked.rounds)
    print(
        keep(
            "hostile_images",
            shlex.join(["python", "-m", "benchmarks.hostile_images", *sys.argv[1:]]),
            result,
            asked.output,
        )
    )
    most = [max(found[key] for found in result.values()) for key in ("most_cpu_more", "most_mb_more")]
    print(f"at most {most[0]} processor seconds and {most[1]} MB beyond an ordinary run")
    return 0 if most[0] <= MOST_SECONDS and most[1] <= MOST_MB else 1


if __name__ == "__main__":
    sys.exit(main())
