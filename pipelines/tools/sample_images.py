"""Write a folder of real photographs to try the ImageNet path on, anywhere and without a download.

    python -m pipelines sample_images data/sample_images

Crops of the two photographs that scikit-learn ships, in ImageNet's layout. A class is a tile of one photograph, each
image a random part of it in a random size, brightness and contrast.

They are for trying the path, not for comparing methods: the crops of train and val share pixels, so a network that has
memorised two photographs is right about both.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from pipelines.common.command_line import Parser, at_least_1
from pipelines.common.errors import UserError
from pipelines.common.paths import path_argument
from pipelines.order import generator, shuffled

Size = tuple[int, int]
PHOTOGRAPHS = ("china", "flower")
ROWS, COLUMNS = ("top", "bottom"), ("left", "middle", "right")
CLASSES = [f"{photo}_{row}_{column}" for photo in PHOTOGRAPHS for row in ROWS for column in COLUMNS]
ASPECT = 1.5
"""Largest ratio of width to height, and of height to width."""
LARGEST = 10_000
"""Most pixels of a side. More is a typing error, and would fill the memory."""


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Encode an image in a format that Pillow knows."""
    file = io.BytesIO()
    image.save(file, kind, **{"quality": 90, **options})
    return file.getvalue()


def lying(image: Image.Image) -> bytes:
    """Encode an image as an upright camera does: turned to the left, with a note to turn it to the right."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


ODD: dict[str, Callable[[Image.Image], bytes]] = {
    "odd_grey.jpg": lambda image: encoded(image.convert("L")),
    "odd_cmyk.jpg": lambda image: encoded(image.convert("CMYK")),
    "odd_png_inside.jpg": lambda image: encoded(image, "PNG"),
    "odd_lying.jpg": lying,
    "odd_1x1.jpg": lambda image: encoded(image.resize((1, 1))),
    "odd_5x3.jpg": lambda image: encoded(image.resize((5, 3))),
    "odd.webp": lambda image: encoded(image, "WEBP"),
    "odd.bmp": lambda image: encoded(image, "BMP"),
    "odd.tiff": lambda image: encoded(image, "TIFF"),
}
"""Encoders of valid images that are often read wrongly, by file name."""
DAMAGE = ("truncated", "junk", "empty")


@dataclass(frozen=True)
class File:
    """One file, and everything that its content depends on."""

    path: str
    """Path in the folder: train/china_top_left/0007.jpg."""
    size: Size
    seed: int
    damage: str = ""

    def content(self) -> bytes:
        """Return the bytes of the file, damaged if it must be."""
        _, name_of_class, name = self.path.split("/")
        uniforms = generator(self.seed, "sample image", self.path).random_raw(7) / 2.0**64
        content = ODD.get(name, encoded)(crop(tiles()[name_of_class], self.size, uniforms.tolist()))
        match self.damage:
            case "truncated":
                return content[: len(content) // 2]
            case "junk":
                words = generator(self.seed, "junk", self.path).random_raw(len(content) // 8 + 1)
                return words.astype("<u8").tobytes()[: len(content)]
            case "empty":
                return b""
        return content


@cache
def tiles() -> dict[str, Image.Image]:
    """Return the part of a photograph that each class shows, by class."""
    from sklearn.datasets import load_sample_images  # Only here: it takes a second.

    parts = (
        tile
        for photograph in load_sample_images().images
        for row in np.array_split(photograph, len(ROWS), axis=0)
        for tile in np.array_split(row, len(COLUMNS), axis=1)
    )
    return {name: Image.fromarray(np.ascontiguousarray(tile)) for name, tile in zip(CLASSES, parts, strict=True)}


def crop(tile: Image.Image, size: Size, uniforms: Sequence[float]) -> Image.Image:
    """Return a random part of the tile, its sides drawn from `size`, in pixels. `uniforms`: 7 numbers in [0, 1]."""
    least, most = size
    wide, high, part, x, y, bright, contrast = uniforms
    width = round(least + (most - least) * wide)
    lowest, highest = max(least, math.ceil(width / ASPECT)), min(most, math.floor(width * ASPECT))
    height = round(lowest + (highest - lowest) * high)
    # Never the whole tile: a rounding error could pass its edge.
    scale = min(tile.width / width, tile.height / height) * (0.6 + 0.39 * part)
    left, top = (tile.width - scale * width) * x, (tile.height - scale * height) * y
    box = (left, top, left + scale * width, top + scale * height)
    levels = (np.arange(256) - 128) * (0.7 + 0.6 * contrast) + 128 + 60 * (bright - 0.5)
    table = np.clip(np.rint(levels), 0, 255).astype(int).tolist()
    return tile.resize((width, height), Image.Resampling.BICUBIC, box).point(table * 3)


def plan(part: str, each: int, size: Size, seed: int, damaged: float) -> list[File]:
    """Return the files of train or val, without odd ones.

    The fraction `damaged` of them is damaged, at least one file if it is not 0.
    """
    paths = [f"{part}/{name}/{number:04}.jpg" for name in CLASSES for number in range(each)]
    count = max(1, round(damaged * len(paths))) if damaged else 0
    chosen = shuffled(len(paths), seed, "damaged", part)[:count].tolist()
    damage = {index: DAMAGE[i % len(DAMAGE)] for i, index in enumerate(chosen)}
    return [File(path, size, seed, damage.get(index, "")) for index, path in enumerate(paths)]


def write(files: Sequence[File], folder: Path, workers: int) -> None:
    """Write all files, or none: they are moved into place together. Raises UserError if they cannot be written."""
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"DIR is {folder}, which is there; it must be new or empty: remove it, or give another")
        target = folder.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            unfinished = Path(temporary) / "images"
            made = tqdm(contents(files, workers), "images", len(files), disable=None)
            for file, content in zip(files, made, strict=True):
                path = unfinished / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if damaged := [file.path for file in files if file.damage]:
                (unfinished / "damaged.txt").write_text("".join(f"{path}\n" for path in damaged))
            unfinished.rename(target)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise UserError(f"DIR is {folder}, which cannot be written ({reason}); give another") from error


def contents(files: Sequence[File], workers: int) -> Iterator[bytes]:
    """Yield the content of each file, made by `workers` processes."""
    if workers == 1:
        yield from map(File.content, files)
        return
    # This process handles interrupts: the others would each print a traceback.
    spawn, ignored = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, spawn, initializer=signal.signal, initargs=ignored) as pool:
        yield from pool.map(File.content, files, chunksize=8)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"is '{text}'; it must be a number of 0 to 1, such as 0.01")
    return value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m pipelines sample_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", type=path_argument, help="folder to write; it must be new or empty")
    parser.add_argument("--train", metavar="N", type=at_least_1, default=100, help="training images a class (100)")
    parser.add_argument("--val", metavar="N", type=at_least_1, default=25, help="validation images a class (25)")
    least_most = ("MIN", "MAX")
    parser.add_argument(
        "--size", metavar=least_most, nargs=2, type=at_least_1, default=[160, 500], help="pixels of a side (160 500)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed that draws the images (0)")
    parser.add_argument(
        "--workers", metavar="N", type=at_least_1, default=os.cpu_count() or 1, help="processes (one a CPU)"
    )
    parser.add_argument("--damaged", metavar="SHARE", type=_fraction, default=0.0, help="fraction of damaged files (0)")
    parser.add_argument(
        "--operations",
        metavar="FILE",
        type=path_argument,
        help="write a chart of the augmentations too, a PNG file: each operation on a photograph, at some magnitudes",
    )
    parser.add_argument("--odd", action="store_true", help="add odd training files: grey, CMYK, lying, tiny, ...")
    asked = parser.parse_args(arguments)
    least, most = asked.size
    if not least <= most <= LARGEST:
        parser.error(f"argument --size: is {least} {most}; MIN must be at most MAX, and MAX at most {LARGEST:,}")
    return asked


def main(arguments: Sequence[str]) -> None:
    """Write the folder. Raises UserError for arguments that are invalid, or a folder that cannot be written."""
    asked = _parse(arguments)
    parts = {"train": asked.train, "val": asked.val}
    files = [file for part, n in parts.items() for file in plan(part, n, asked.size, asked.seed, asked.damaged)]
    odd = [File(f"train/{name}/{odd}", asked.size, asked.seed) for name in CLASSES for odd in ODD if asked.odd]
    if asked.operations is not None:
        from pipelines.tools.operations_chart import write_chart  # Only here: torch takes seconds to import.

        write_chart(tiles()["flower_bottom_middle"], asked.operations)
    write([*files, *odd], asked.folder, asked.workers)
    damaged = sum(file.damage != "" for file in files)
    kinds = [f"{len(odd)} odd images"] * bool(odd) + [f"{damaged} files damaged (see damaged.txt)"] * bool(damaged)
    counts = ", ".join(f"{n * len(CLASSES):,} images in {part}" for part, n in parts.items())
    print(
        f"{asked.folder}: {len(CLASSES)} classes, {', '.join([counts, *kinds])}; train on it with\n"
        "launch/local.sh --workers demo -- --config configs/sample_images_resnet.yaml "
        + shlex.quote(f"data.path={asked.folder}")
    )
