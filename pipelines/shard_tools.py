"""`python -m pipelines.shards`: writes shards from a folder of images, and indexes beside shards."""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines.config import DataError
from pipelines.image_folder import check_folders, list_images
from pipelines.order import Indices, shuffled
from pipelines.shard_index import LABEL, write_index
from pipelines.shards import CLASSES, matching
from pipelines.sources import Encoded


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "index":
            index(options.root, options.pattern or ["*/*.tar"])
        else:
            write(options.folder, options.out, options.samples)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    indexing = commands.add_parser("index", help="write an index beside each shard: a start need not read the headers")
    indexing.add_argument("root", type=Path, help="folder of the shards")
    indexing.add_argument(
        "--pattern", action="append", help="which shards, relative to the folder; may be repeated (default: */*.tar)"
    )
    writing = commands.add_parser("write", help="write a folder of images as shards, with indexes")
    writing.add_argument("folder", type=Path, help="holds train/CLASS/* and val/CLASS/*")
    writing.add_argument("out", type=Path, help="folder to write; must be new or empty")
    writing.add_argument("--samples", type=int, default=1000, help="in each shard (default: %(default)s)")
    return parser


def index(root: Path, patterns: Sequence[str]) -> None:
    """In processes, as reading headers is Python's work. Raises DataError or OSError."""
    shards = sorted({root / path for pattern in patterns for path in matching(root, pattern, "--pattern")})
    # Not forked: a fork of a process with threads, such as DALI's, may wait for ever for a lock that one of them held.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.map(partial(write_index, setting="--pattern"), shards)
        for _ in tqdm(found, total=len(shards), desc="index", unit="shard", disable=None):
            pass


def write(folder: Path, out: Path, samples: int) -> None:
    """Training samples are mixed over the shards, the same way each time; validation stays in order.

    A key is the sample's number. Raises DataError or OSError.
    """
    if samples < 1:
        raise DataError(f"--samples is {samples}, a shard holds at least one; give 1 or more")
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise DataError(f"{out} is there and not an empty folder; remove it, or give another name")
    classes = check_folders(str(folder), _number_of_classes(folder / "train"))
    parts = {part: list_images(folder, part, classes) for part in ("train", "val")}
    for part, files in parts.items():
        size = len(files.labels)
        order = shuffled(size, "shards") if part == "train" else np.arange(size, dtype=np.int64)
        (out / part).mkdir(parents=True)
        progress = tqdm(range(0, size, samples), desc=f"write {part}", unit="shard", disable=None)
        for number, start in enumerate(progress):
            _write_shard(out / part / f"{number:05}.tar", files, order[start : start + samples], start)
    (out / CLASSES).write_bytes(b"".join(os.fsencode(name) + b"\n" for name in classes))
    index(out, ["*/*.tar"])


def _number_of_classes(folder: Path) -> int:
    """0 if the folder cannot be read: then `check_folders` says what is wrong with it."""
    try:
        return sum(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
    except OSError:
        return 0


def _write_shard(path: Path, files: Encoded, chosen: Indices, first: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(chosen, start=first):
            extension = files.name(sample).rpartition(".")[2].lower()
            _add(tar, f"{number:08}.{extension}", files.encoded(sample).tobytes())
            _add(tar, f"{number:08}.{LABEL}", b"%d" % files.labels[sample])


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
