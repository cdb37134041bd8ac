"""The small data sets that are copied and damaged, each with a run that was trained on it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz import children
from tests.fuzz.inputs import execute
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
    """A folder of images, shards made of it, and no files at all."""
    images, shards, none = (folder / name for name in ("folder", "shards", "synthetic"))
    names = _fill(images / "data")
    _do(folder, lambda: execute.program(folder, ["pipelines", "shards", "write", "folder/data", "shards/data"], {}))
    none.mkdir()
    packed = [
        f"{path.relative_to(shards / 'data')}/{number:08}.{suffix}"
        for path in sorted((shards / "data").glob("*/*.tar"))
        for number, suffix in _members(path)
    ]
    found = (
        Subject("folder", images, config(name="imagenet"), tuple(names)),
        Subject("shards", shards, config(name="webdataset"), tuple(packed)),
        Subject("synthetic", none, {**config(), "data": _SYNTHETIC}, ()),
    )
    for subject in found:
        _train(subject)
    return {subject.name: subject for subject in found}


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


def _do(folder: Path, act: Callable[[], object]) -> None:
    outcome = children.run(act, folder, Limits(300, 4 << 30))
    assert outcome.code == 0, f"{folder}: exit code {outcome.code}\n{outcome.err}"
