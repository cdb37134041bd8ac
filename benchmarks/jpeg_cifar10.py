"""CIFAR-10 as JPEG files of quality 75, the images of the table on docs/results/cifar10.md.

    python -m benchmarks.jpeg_cifar10 --images data/cifar10 --to data/cifar10-jpeg

Reads cifar-10-batches-py in --images, and makes train/CLASS/NUMBER.jpg and test/CLASS/NUMBER.jpg.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from benchmarks.harness.script import ScriptParser
from pipelines.common.errors import UserError
from pipelines.datasets.cifar10 import Cifar10Settings, load
from pipelines.sources.base import Arrays

QUALITY, HALVED = 75, "4:2:0"
"""JPEG quality, and chroma at half the resolution."""


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--images", metavar="DIR", required=True, help="holds cifar-10-batches-py")
    parser.add_argument("--to", metavar="DIR", type=Path, required=True)
    asked = parser.parse_args()
    try:
        train, test = load(Cifar10Settings(name="cifar10", path=asked.images))
    except UserError as error:
        sys.exit("".join(f"error: {line}\n" for line in error.lines).rstrip())
    for part, images in (("train", train), ("test", test)):
        write(images, asked.to / part)
    print(f"{len(train) + len(test):,} images in {asked.to}")


def write(images: Arrays, folder: Path) -> None:
    """Write each image to the folder of its class, numbered from 0 in the order of the data set."""
    counts = dict.fromkeys(images.class_names, 0)
    for pixels, label in zip(images.images, images.labels, strict=True):
        name = images.class_names[label]
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{counts[name]:04}.jpg", quality=QUALITY, subsampling=HALVED)
        counts[name] += 1


if __name__ == "__main__":
    main()
