"""CPU time of a training image through DALI, from parquet files and from a folder, in turns.

    python -m benchmarks.parquet_reading        (about 3 minutes; writes results/parquet_reading.json; needs pyarrow)

Images are JPEG files of 500x375 pixels and about 41 kB, 100 a row group, and the view is training's. In the first epoch
each row group is read whole once. Ratios are to the folder's second epoch. Time is that of all threads of the process,
with all files in the page cache. Of zstd half of these few row groups stay in memory: more of them take longer.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.record import ROOT, keep
from benchmarks.harness.rounds import in_rounds, ratio, returned
from benchmarks.harness.script import plain_parser
from pipelines.common.command_line import at_least_1
from tests.pipelines.pictures import picture

IMAGES, BATCH = 800, 80
CODECS = ("snappy", "zstd")
FOLDER = "folder"

MEASURE = """
import os, sys, time
import pipelines
from pipelines.base import Request
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.parquet import ParquetSettings
from pipelines.order import Share

path, name, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = ImagenetSettings if name == "imagenet" else ParquetSettings
settings = kind.model_validate({"name": name, "path": path, "number_of_classes": 2, "validation_samples": 80})
train = pipelines.build(settings, Request(7, batch, Share(), batch, None)).train
for _ in range(2):
    began, images = time.process_time(), 0
    for step in train.epoch():
        images += len(step[0][1])
    print(1000 * (time.process_time() - began) / images, flush=True)
os._exit(0)
"""


def milliseconds(folder: Path, name: str) -> list[float]:
    """Return those of the first epoch and of the second."""
    command = [sys.executable, "-c", MEASURE, str(folder), name, str(BATCH)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()[-2:]]


def write(root: Path) -> None:
    import pyarrow as pa  # Only here: pyarrow is optional.
    import pyarrow.parquet as pq

    rows = []
    for number in range(IMAGES):
        path = root / FOLDER / "train" / ("ape", "bee")[number % 2] / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(500, 375, seed=number).effect_spread(9).save(path, quality=95)  # Noise, as photographs have.
        rows.append({"image": {"bytes": path.read_bytes(), "path": path.name}, "label": number % 2})
    for codec in CODECS:
        (root / codec).mkdir()
        pq.write_table(
            pa.Table.from_pylist(rows), root / codec / "train.parquet", row_group_size=100, compression=codec
        )


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--rounds", type=at_least_1, default=3)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write(root)
        ways = {FOLDER: partial(milliseconds, root / FOLDER, "imagenet")}
        ways |= {codec: partial(milliseconds, root / codec, "parquet") for codec in CODECS}
        size = sum(path.stat().st_size for path in (root / FOLDER).rglob("*.jpg")) / IMAGES
        times = in_rounds(ways, asked.rounds, warm_up=0, measure=returned)
    result: dict[str, object] = {"bytes_an_image": round(size), "ms_of_first_and_second_epoch": times}
    for way, found in times.items():
        first, second = ([epochs[number] for epochs in found] for number in (0, 1))
        base = [epochs[1] for epochs in times[FOLDER]]
        result[way] = {"first_to_folder": ratio(first, base), "later_to_folder": ratio(second, base)}
        print(f"{way}: first epoch {statistics.median(first):.2f} ms, then {statistics.median(second):.2f}", flush=True)
    print(keep("parquet_reading", result, asked.output))


if __name__ == "__main__":
    main()
