"""Check a data set of photographs before training: decode every image, and list those that cannot be decoded.

    python -m pipelines scan data/imagenet

DIR holds train/CLASS/* and val/CLASS/* (or valid, validation, test), or WebDataset's shards in such folders, or parquet
files such as data/train-*.parquet. Writes DIR/exclude.txt, which is for data.exclude, and DIR/scan.json: counts,
formats, sizes, duplicates and what is odd.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from pipelines.common.command_line import Parser, at_least_1
from pipelines.common.errors import UserError
from pipelines.common.paths import path_argument
from pipelines.images.encoded import MOST_PIXELS
from pipelines.sources.class_folders import class_folders, parts_of
from pipelines.sources.class_list import read_names
from pipelines.sources.image_folder import list_images
from pipelines.sources.parquet_parts import require_pyarrow
from pipelines.sources.parts import TRAIN
from pipelines.sources.shards import list_shards, shard_parts
from pipelines.tools.scan_facts import Check, Decodes
from pipelines.tools.scan_processes import examined, preload
from pipelines.tools.scan_report import Part, Report, Tally
from pipelines.tools.scan_summary import listable, shown, summary

PARTS = ("train", "val")
MOST_CLASSES = 1 << 16
"""Most classes in shards without a list of classes."""


def scan(parts: Sequence[Part], workers: int, check: Check) -> Report:
    """Examine every image in `workers` processes. Raises UserError if they cannot start."""
    tally = Tally({part.name: part for part in parts})
    total = sum(len(part.source.labels) for part in parts)
    sources = {part.name: part.source for part in parts}
    with closing(examined(sources, workers, check)) as answers:
        for (part, index), facts in tqdm(answers, "scan", total, unit="image", disable=None):
            tally.add(part, index, facts)
    return tally.report()


def _folder_parts(root: Path) -> list[Part]:
    """Return the parts of a folder of images, even an incomplete one. Raises UserError if it cannot be read."""
    found = []
    for name in parts_of(root).there:
        if os.path.isdir(root / name):
            classes = class_folders(root / name)
            filled = [folder for folder, (images, _) in classes.items() if images]
            others = sum(others for _, others in classes.values())
            found.append(Part(name, list_images(root, name, filled), tuple(classes), others))
    return found


def _shard_parts(root: Path, patterns: Mapping[str, str]) -> list[Part]:
    """Return the parts of a data set in shards. Raises UserError if a shard cannot be read."""
    found = {
        name: list_shards(root, pattern, MOST_CLASSES, setting="--shards", every_class=False)
        for name, pattern in patterns.items()
    }
    classes = 1 + max(int(shards.labels.max()) for shards in found.values())
    named = read_names(root)
    names = named if len(named) >= classes else tuple(map(str, range(classes)))
    parts = []
    for name, shards in found.items():
        there = range(len(names)) if name == TRAIN else sorted(set(shards.labels.tolist()))
        parts.append(Part(name, dataclasses.replace(shards, class_names=names), tuple(names[i] for i in there)))
    return parts


def _parquet_parts(root: Path, patterns: Mapping[str, str], columns: tuple[str | None, str | None]) -> list[Part]:
    """Return the parts of a data set in parquet files: none if it is in none. Raises UserError."""
    if not patterns and not any(root.glob("**/*.parquet")):
        return []
    require_pyarrow(f"{root} holds parquet files")
    from pipelines.sources.parquet_shards import Asked  # Only here: pyarrow is optional.
    from pipelines.tools import scan_parquet

    asked = Asked(*columns)
    patterns = patterns or scan_parquet.patterns_of(root, asked)
    return scan_parquet.scan_parts(root, patterns, asked) if patterns else []


def _listed(
    root: Path, patterns: Sequence[str] | None, columns: tuple[str | None, str | None] = (None, None)
) -> list[Part]:
    """Return the parts to scan: folders of images, or shards. Raises UserError if there is none."""
    if not os.path.isdir(root):  # False, unlike Path.is_dir, where a folder above may not be entered.
        raise UserError(f"DIR is {root}, which is no folder; give the folder that holds train and val")
    if patterns is not None:
        given = dict(zip(PARTS, patterns, strict=True))
        return _parquet_parts(root, given, columns) if _are_parquet(patterns) else _shard_parts(root, given)
    parts = _folder_parts(root)
    if not any(len(part.source.labels) for part in parts):
        patterns = shard_parts(root).there
        if not (shards := {pattern.partition("/")[0]: pattern for pattern in patterns if any(root.glob(pattern))}):
            if parquet := _parquet_parts(root, {}, columns):
                return parquet
            raise UserError(
                f"DIR is {root}, which holds no images (train/CLASS/* and val/CLASS/*) and no shards (train/*.tar and "
                "val/*.tar, or data/train-*.parquet); give the folder that does, or patterns of shards by --shards"
            )
        return _shard_parts(root, shards)
    return parts


def _are_parquet(patterns: Sequence[str]) -> bool:
    return all(pattern.endswith(".parquet") for pattern in patterns)


def _exclude_list(report: Report) -> str:
    """Return the text of the file for `data.exclude`."""
    names = [name for name in report.bad if listable(name)]
    return (
        "# Images that cannot be read or decoded, for data.exclude: a name a line, relative to data.path.\n"
        f"# Written by python -m pipelines scan; {len(names)} of {sum(report.images.values())} images.\n"
    ) + "".join(f"{name}\n" for name in names)


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises UserError if it cannot be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", errors="surrogateescape")
        os.replace(draft, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); give another by --exclude or --report"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m pipelines scan", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR", type=path_argument, help="folder that holds train and val")
    parser.add_argument(
        "--shards",
        metavar=("TRAIN", "VAL"),
        nargs=2,
        help="patterns of shards, relative to DIR (train/*.tar val/*.tar)",
    )
    for what in ("image", "label"):
        parser.add_argument(f"--{what}-column", metavar="NAME", help=f"of parquet files, as data.{what}_column")
    parser.add_argument(
        "--most-pixels", metavar="N", type=at_least_1, default=MOST_PIXELS, help="as data.most_pixels (60,000,000)"
    )
    parser.add_argument("--exclude", metavar="FILE", type=path_argument, help="list of bad images (DIR/exclude.txt)")
    parser.add_argument("--report", metavar="FILE", type=path_argument, help="report to write (DIR/scan.json)")
    parser.add_argument("--workers", metavar="N", type=at_least_1, default=_cpus(), help="processes (one a CPU)")
    asked = parser.parse_args(arguments)
    asked.exclude = asked.exclude or asked.folder / "exclude.txt"
    asked.report = asked.report or asked.folder / "scan.json"
    if asked.exclude.absolute() == asked.report.absolute():
        parser.error(f"argument --report: is {asked.report}, as is --exclude; give two files")
    return asked


def _cpus() -> int:
    """Count the CPUs that this process may use: on a cluster often not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_place(option: str, path: Path) -> None:
    """Raise UserError if a file cannot be written there. Asked first, for a scan may take hours."""
    if os.path.isdir(path) or not os.path.isdir(path.parent) or not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} is {path}, which cannot be written; give a file in a folder that is there and yours")


def main(arguments: Sequence[str]) -> None:
    """Scan a data set, and write the report and the list. Raises UserError if nothing can be scanned or written."""
    asked = _parse(arguments)
    parts = _listed(asked.folder, asked.shards, (asked.image_column, asked.label_column))
    _require_place("--exclude", asked.exclude)
    _require_place("--report", asked.report)
    preload()
    report = scan(parts, asked.workers, Decodes(asked.most_pixels))
    if len(report.bad) == sum(report.images.values()):
        name, reason = next(iter(report.bad.items()))
        raise UserError(
            f"all {len(report.bad)} images are bad, such as {shown(name)}: {reason}; nothing is written: check DIR"
        )
    written = bool(report.bad) or asked.exclude.exists()
    if written:
        _write(asked.exclude, _exclude_list(report))
    about = {
        "folder": str(asked.folder),
        "most_pixels": asked.most_pixels,
        "exclude": str(asked.exclude) if written else None,
    }
    _write(asked.report, json.dumps({**about, **dataclasses.asdict(report)}, indent=2) + "\n")
    print("\n".join(summary(report)))
    print(f"report: {asked.report}")
    if report.bad:
        print("train without the bad ones: " + shlex.quote(f"data.exclude={asked.exclude}"))
    else:
        print("nothing to exclude" + f"; {asked.exclude} existed, and is now without names" * written)
