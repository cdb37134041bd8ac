"""Write shards from a folder of images, and indexes beside shards: `python -m pipelines shards`."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from pipelines.common.command_line import Parser
from pipelines.common.errors import UserError
from pipelines.common.files import naming, read_bytes
from pipelines.common.paths import path_argument
from pipelines.order import Indices, shuffled
from pipelines.sources.class_folders import check_classes, class_names, parts_of
from pipelines.sources.class_list import CLASSES
from pipelines.sources.image_folder import ImageFiles, list_images
from pipelines.sources.parts import TRAIN
from pipelines.sources.shard_index import write_index
from pipelines.sources.shard_samples import LABEL
from pipelines.sources.shards import matching

T = TypeVar("T")
LARGEST = 512 << 20
"""Most bytes of an image."""
STEPS = 20
"""Lines of progress without a terminal."""


def main(arguments: Sequence[str]) -> None:
    """Write or index shards. Raises UserError for invalid arguments, and for files that cannot be read or written."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "index":
            index(options.root, options.pattern or ["*/*.tar"])
        else:
            write(options.folder, options.out, options.samples)
    except OSError as error:
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        raise UserError(f"{name}{error.strerror or error}; make it readable, or room to write") from error


def _parser() -> Parser:
    parser = Parser(prog="python -m pipelines shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    indexing = commands.add_parser("index", help="write an index beside each shard: a start need not read the headers")
    indexing.add_argument("root", type=path_argument, help="folder of the shards")
    indexing.add_argument(
        "--pattern", action="append", help="which shards, relative to the folder; may be repeated (default: */*.tar)"
    )
    writing = commands.add_parser("write", help="write a folder of images as shards, with indexes")
    writing.add_argument("folder", type=path_argument, help="holds train/CLASS/* and val/CLASS/*")
    writing.add_argument("out", type=path_argument, help="folder to write; must be new or empty")
    writing.add_argument("--samples", type=int, default=1000, help="in each shard (default: %(default)s)")
    return parser


def index(root: Path, patterns: Sequence[str]) -> None:
    """Write indexes, in several processes: Python reads the headers. Raises UserError or OSError."""
    shards = sorted({root / path for pattern in patterns for path in matching(root, pattern, "--pattern")})
    # Not forked: the fork of a process with threads, such as DALI's, may wait without end for a lock that one held.
    workers = min(len(shards), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(partial(write_index, setting="--pattern"), shards)
        try:
            for _ in _progress(found, len(shards), "index", "shards"):
                pass
        except BrokenProcessPool:
            raise UserError(f"{root}: a process that reads shards has ended; is there memory left?") from None
        finally:
            pool.shutdown(cancel_futures=True)


def write(folder: Path, out: Path, samples: int) -> None:
    """Write a folder of images as shards, all or nothing. Raises UserError or OSError.

    Training samples are mixed over the shards, the same way each time; the others stay in order. A key is the sample's
    number.
    """
    if samples < 1:
        raise UserError(f"--samples is {samples}, a shard holds at least one; give 1 or more")
    if os.path.exists(out) and not (os.path.isdir(out) and next(out.iterdir(), None) is None):
        raise UserError(f"{out} is there and not an empty folder; remove it, or give another name")
    parts = parts_of(folder)
    classes = check_classes(folder, parts, len(class_names(folder / TRAIN)))
    sources = {part: list_images(folder, part, classes) for part in parts.there}
    with _draft(out) as draft:
        for part, files in sources.items():
            (draft / part).mkdir()
            _write_part(draft / part, files, samples, mixed=part == TRAIN)
        (draft / CLASSES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8", newline="\n")
        index(draft, ["*/*.tar"])


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """Yield a folder within `out`, thus on its disk. Its content moves up when the block ends without an error."""
    made = [path for path in (out, *out.parents) if not os.path.exists(path)]
    draft = out / f".writing-{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in sorted(draft.iterdir()):
            os.rename(path, out / path.name)
        draft.rmdir()
    except BaseException:
        shutil.rmtree(made[-1] if made else draft, ignore_errors=True)
        raise


def _write_part(folder: Path, files: ImageFiles, samples: int, *, mixed: bool) -> None:
    size = len(files.labels)
    order = shuffled(size, "shards") if mixed else np.arange(size, dtype=np.int64)
    progress = _progress(range(size), size, f"write {folder.name}", "images")
    for number, start in enumerate(range(0, size, samples)):
        _write_shard(folder / f"{number:05}.tar", files, order[start : start + samples], start, progress)
    for _ in progress:
        pass


def _write_shard(path: Path, files: ImageFiles, chosen: Indices, first: int, progress: Iterator[int]) -> None:
    with naming(path), tarfile.open(path, "w") as tar:
        for number, sample in enumerate(chosen, start=first):
            extension = files.name(sample).rpartition(".")[2].lower()
            _add(tar, f"{number:08}.{extension}", _content(files, sample))
            _add(tar, f"{number:08}.{LABEL}", b"%d" % files.labels[sample])
            next(progress)


def _content(files: ImageFiles, sample: int) -> bytes:
    path = files.path(sample).tobytes()
    try:
        return read_bytes(path, LARGEST)
    except OSError as error:
        raise UserError(
            f"{os.fsdecode(path)} cannot be read ({error.strerror}); make it readable, or remove it"
        ) from None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _progress(done: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """Yield the items, with a progress bar in a terminal, else with some lines."""
    if sys.stderr.isatty():
        yield from tqdm(done, what, total, unit=f" {unit}")
        return
    for number, each in enumerate(done, start=1):
        yield each
        if number * STEPS // total > (number - 1) * STEPS // total:
            print(f"{what}: {number:,} of {total:,} {unit}", file=sys.stderr, flush=True)
