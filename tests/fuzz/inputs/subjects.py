"""The small data sets that are copied and damaged, each with a run that was trained on it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz import children
from tests.fuzz.inputs import archive_files, execute, parquet_files
from tests.fuzz.inputs.pictures import KINDS, made
from tests.fuzz.inputs.place import Subject
from tests.fuzz.limits import Limits

CLASSES = ("ape", "bee", "cat")
TRAIN, VAL = 4, 2
"""Images of each class."""

CONFIG: dict[str, Any] = {
    "name": "a",
    "runs": "runs",
    "seed": 3,
    "model": {"name": "small_cnn", "channels": [4, 6]},
    "sparsity": {"conv": 0.5, "fc": 0.0},
    "method": {"name": "rigl", "period": 2},
    "data": {"path": "data", "number_of_classes": 3, "image_size": 16, "evaluation_resize": 16, "threads": 1},
    "train": {"epochs": 1, "global_batch_size": 4, "lr": {"name": "steps", "table": 0.05}},
    "log": {"every_steps": 1, "progress": "none"},
}
_SYNTHETIC = {"name": "synthetic", "shape": [1, 6, 6], "samples": 12, "test_samples": 6, "threads": 1}


def config(**data: Any) -> dict[str, Any]:
    found = copy.deepcopy(CONFIG)
    found["data"].update(data)
    return found


def make(folder: Path) -> dict[str, Subject]:
    """A folder of images, shards and parquet files made of it, no files at all, and archives to prepare."""
    images, shards, parquet, none = (folder / name for name in ("folder", "shards", "parquet", "synthetic"))
    names = _fill(images / "data")
    _do(folder, lambda: execute.program(folder, ["pipelines", "shards", "write", "folder/data", "shards/data"], {}))
    (parquet / "data").mkdir(parents=True)
    rows = _do(parquet, lambda: _write_parquet(images / "data", parquet / "data"))
    none.mkdir()
    packed = [
        f"{path.relative_to(shards / 'data')}/{number:08}.{suffix}"
        for path in sorted((shards / "data").glob("*/*.tar"))
        for number, suffix in _members(path)
    ]
    found = (
        Subject("folder", images, config(name="imagenet"), tuple(names)),
        Subject("shards", shards, config(name="webdataset"), tuple(packed)),
        Subject("parquet", parquet, config(name="parquet"), tuple(rows.splitlines())),
        Subject("synthetic", none, {**config(), "data": _SYNTHETIC}, ()),
    )
    for subject in found:
        _train(subject)
    archives = Subject("archives", folder / "archives", found[-1].config, ())
    archives.folder.mkdir()
    _do(archives.folder, lambda: archive_files.write(archives.folder / "data"))
    return {subject.name: subject for subject in (*found, archives)}


def _fill(data: Path) -> list[str]:
    names = []
    for part, count in (("train", TRAIN), ("val", VAL)):
        for label, name in enumerate(CLASSES):
            (data / part / name).mkdir(parents=True)
            for number in range(count):
                suffix = list(KINDS)[(number + label) % len(KINDS)]
                kind = next(iter(KINDS[suffix]))
                path = data / part / name / f"{number:04}.{suffix}"
                path.write_bytes(made(suffix, kind, number))
                names.append(str(path.relative_to(data)))
    return names


def _write_parquet(images: Path, out: Path) -> None:
    """Write shards, and print the names of the samples."""
    for part, name, shards in (("train", "train", 2), ("val", "validation", 1)):
        files = sorted((images / part).glob("*/*"))
        rows = [(file.read_bytes(), CLASSES.index(file.parent.name)) for file in files]
        for number in range(shards):
            some = rows[number * len(rows) // shards : (number + 1) * len(rows) // shards]
            path = out / f"{name}-{number:05}-of-{shards:05}{parquet_files.SUFFIX}"
            parquet_files.write(path, parquet_files.table(some, CLASSES))
            print(*(f"{path.name}/{row}" for row in range(len(some))), sep="\n")


def _members(shard: Path) -> list[tuple[int, str]]:
    import tarfile

    with tarfile.open(shard) as tar:
        pairs = (name.split(".") for name in tar.getnames())
        return [(int(key), suffix) for key, suffix in pairs if suffix != "cls"]


def _train(subject: Subject) -> None:
    (subject.folder / "F.yaml").write_text(yaml.safe_dump(subject.config))
    _do(subject.folder, lambda: execute.program(subject.folder, ["dist_train.py", "--config", "F.yaml"], {}))
    shutil.move(subject.folder / "runs" / "a", subject.folder / "reference")
    shutil.rmtree(subject.folder / "runs")
    for name in ("stdout", "stderr", "F.yaml"):
        (subject.folder / name).unlink(missing_ok=True)


def _do(folder: Path, act: Callable[[], object]) -> str:
    """Call a function in a child. Return what it printed."""
    outcome = children.run(act, folder, Limits(300, 4 << 30))
    assert outcome.code == 0, f"{folder}: exit code {outcome.code}\n{outcome.err}"
    return outcome.out
