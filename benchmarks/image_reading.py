"""CPU time of a training image through DALI, of this commit and of another, in turns.

    python -m benchmarks.image_reading --before ce83a8e        (about 5 minutes; writes results/image_reading.json)

That other commit had DALI read and decode all files itself. Images are of 500x375 pixels, the view is training's. Time
is that of all threads of the process, which other programs on the machine disturb less than the time by the clock.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.record import ROOT, Result
from benchmarks.harness.rounds import in_rounds, ratio, returned
from benchmarks.harness.script import keep_whole, plain_parser
from pipelines.common.command_line import at_least_1
from tests.pipelines.pictures import picture

IMAGES, BATCH = 128, 64
KINDS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"quality": 90}}

MEASURE = """
import sys, time
from pathlib import Path
from pipelines.base import Request
from pipelines.order import SampleOrder, Share
from pipelines.views import RandomResizedCrop, Recipe
try:
    from pipelines.datasets.imagenet import ImagenetSettings
    from pipelines.datasets.photographs import NORMALISATION
    from pipelines.loaders.registry import loader as loader_of
    from pipelines.sources.image_folder import list_images
except ImportError:  # The other commit may have them elsewhere.
    from pipelines.config import ImagenetSettings
    from pipelines.image_folder import list_images
    from pipelines.imagenet import NORMALISATION
    from pipelines.loaders import loader as loader_of

source = list_images(Path(sys.argv[1]), "train", ["ape"])
batch, runs = int(sys.argv[2]), int(sys.argv[3])
order, view = SampleOrder(7, len(source.labels), batch), RandomResizedCrop(224)

def stream():
    for epoch in range(1_000_000):
        for number in range(order.batches_per_epoch):
            place = epoch, number, 0, Share()
            yield order.micro_batch(*place), order.randoms(*place, view.uniforms)

settings = ImagenetSettings(name="imagenet", path=sys.argv[1], threads=2)
feed = loader_of(settings, Request(7, batch, Share(), batch, None)).feed(
    Recipe(source, view, NORMALISATION), stream(), batch
)
for _ in range(4):
    feed.next()
began = time.process_time()
for _ in range(runs):
    feed.next()
print(1000 * (time.process_time() - began) / (runs * batch))
"""


def milliseconds(checkout: Path, folder: Path, runs: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", MEASURE, str(folder), str(BATCH), str(runs)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measured(before: Path, folder: Path, rounds: int, runs: int) -> Result:
    checkouts = {"before": before, "now": ROOT}
    ways = {way: partial(milliseconds, checkout, folder, runs) for way, checkout in checkouts.items()}
    times = in_rounds(ways, rounds, warm_up=0, measure=returned)
    return {**times, "ratio": ratio(times["now"], times["before"])["median"]}


@contextmanager
def checkout_of(commit: str, folder: Path) -> Iterator[Path]:
    path = folder / "before"
    subprocess.run(["git", "worktree", "add", "--detach", path, commit], cwd=ROOT, check=True)
    try:
        yield path
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", path], cwd=ROOT, check=True)


def write(folder: Path, kind: str) -> Path:
    place = folder / kind / "train" / "ape"
    place.mkdir(parents=True)
    for number in range(IMAGES):
        image = picture(500, 375, seed=number).effect_spread(2)  # Noise, as photographs have.
        image.save(place / f"{number:03}.{kind.lower()}", kind, **KINDS[kind])
    return folder / kind


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of files ({','.join(KINDS)})")
    parser.add_argument("--rounds", type=at_least_1, default=5)
    parser.add_argument("--runs", type=at_least_1, default=10, help="batches measured in a round (10)")
    asked = parser.parse_args()
    asked.kinds = asked.kinds.split(",")
    if unknown := sorted({*asked.kinds} - {*KINDS}):
        parser.error(f"--kinds names {', '.join(unknown)}; there are {', '.join(KINDS)}")
    result = {}
    with TemporaryDirectory() as folder, checkout_of(asked.before, Path(folder)) as before:
        for kind in asked.kinds:
            result[kind] = measured(before, write(Path(folder), kind), asked.rounds, asked.runs)
            now = statistics.median(result[kind]["now"])
            print(f"{kind}: {now:.2f} ms, {result[kind]['ratio']:.2f} times", flush=True)
    print(keep_whole("image_reading", result, asked.output, whole={*asked.kinds} == {*KINDS}))


if __name__ == "__main__":
    main()
