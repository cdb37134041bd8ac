"""Commands for damaged inputs: one program, or several in a row whose output must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.fuzz.inputs import preparing
from tests.fuzz.inputs.place import Place

LOADERS = ("dali", "torch")
IMAGES = ("folder", "shards", "parquet")
"""Subjects that have images."""
Lines = list[list[str]]
"""Command lines, less `python -m`."""


@dataclass(frozen=True)
class Command:
    name: str
    lines: Callable[[Random, Place], Lines]
    likely: dict[str, int]
    """Weight of the command for each kind of mutation."""
    subjects: tuple[str, ...] = ("folder", "shards", "parquet", "synthetic")
    writes: tuple[str, ...] = ()
    """Ends of names of files beside the data that it may write."""


def _train(place: Place, *words: str, free: bool = False) -> list[str]:
    """`free`: where the run's folder is, is up to the config, as nothing is written."""
    here = [] if free else ["name=a", "runs=runs"]
    return ["dist_train.py", "--config", "F.yaml", *words, *place.overrides, *here]


def _settings(rng: Random, place: Place) -> list[str]:
    if place.subject.name == "synthetic":
        return []
    return [f"data.loader={rng.choice(LOADERS)}", f"data.on_bad_file={rng.choice(('stop', 'skip'))}"]


def start(rng: Random, place: Place) -> Lines:
    words = _settings(rng, place)
    return [_train(place, "--check", *words), _train(place, *words)]


def check(rng: Random, place: Place) -> Lines:
    return [_train(place, "--check", free=True)]


def dry_run(rng: Random, place: Place) -> Lines:
    return [_train(place, "--dry-run", "--check"), _train(place, "--dry-run")]


def preview(rng: Random, place: Place) -> Lines:
    words = [*_settings(rng, place), "--preview", rng.choice(("1", "4", "30"))]
    return [_train(place, *words, "--check"), _train(place, *words)]


def evaluate(rng: Random, place: Place) -> Lines:
    words = [*_settings(rng, place), "--evaluate", "reference"]
    return [_train(place, *words, "--check"), _train(place, *words)]


def agree(rng: Random, place: Place) -> Lines:
    return [["look", loader, f"out/{loader}.npz"] for loader in LOADERS]


def scan(rng: Random, place: Place) -> Lines:
    """The data without what it names can be trained on."""
    (place.home / "out" / "exclude.txt").write_text("# of another scan\n")  # Else there is none where all is well.
    looking = ["pipelines", "scan", "data", "--workers", rng.choice(("1", "2"))]
    training = _train(
        place, f"data.loader={rng.choice(LOADERS)}", "data.on_bad_file=stop", "data.exclude=out/exclude.txt"
    )
    return [[*looking, "--exclude", "out/exclude.txt", "--report", "out/scan.json"], training]


def index(rng: Random, place: Place) -> Lines:
    return [["pipelines", "shards", "index", "data"], _train(place, *_settings(rng, place))]


def write(rng: Random, place: Place) -> Lines:
    samples = rng.choice(("1", "5", "1000"))
    data = "data={name: webdataset, path: out/shards, number_of_classes: 3, image_size: 16, evaluation_resize: 16}"
    return [["pipelines", "shards", "write", "data", "out/shards", "--samples", samples], _train(place, data)]


def prepare(rng: Random, place: Place) -> Lines:
    """Once, and once more, which changes nothing."""
    words = _preparing(rng, place)
    return [["prepare", *words], ["prepare", *words]]


def killed(rng: Random, place: Place) -> Lines:
    words = _preparing(rng, place)
    return [["killed", str(rng.randrange(8)), *words], ["prepare", *words]]


def full(rng: Random, place: Place) -> Lines:
    words = _preparing(rng, place)
    return [["full", str(rng.choice((2_000, 6_000, 30_000))), *words], ["prepare", *words]]


def _preparing(rng: Random, place: Place) -> list[str]:
    words = [place.data_set, "--archives", "data", "--out", str(preparing.OUT)]
    if place.data_set != "imagenet":
        return words
    if (place.home / "classes.txt").exists():
        words += ["--classes", "classes.txt"]
    return [*words, "--workers", rng.choice(("1", "4")), *rng.choice(([], ["--allow-fewer"]))]


def _likely(*counts: int) -> dict[str, int]:
    return dict(zip(("image", "file", "tree", "shard", "index", "list", "parquet", "config"), counts, strict=True))


COMMANDS = {
    command.name: command
    for command in (
        Command("start", start, _likely(3, 5, 5, 5, 6, 5, 5, 4)),
        Command("check", check, _likely(0, 1, 1, 1, 1, 1, 1, 4)),
        Command("dry-run", dry_run, _likely(0, 0, 0, 0, 0, 0, 0, 3)),
        Command("preview", preview, _likely(1, 1, 1, 1, 1, 1, 1, 1)),
        Command("evaluate", evaluate, _likely(1, 1, 1, 1, 1, 1, 1, 0)),
        Command("agree", agree, _likely(12, 3, 1, 1, 1, 1, 3, 0), IMAGES),
        Command("scan", scan, _likely(3, 3, 3, 2, 1, 1, 2, 0), IMAGES),
        Command("index", index, _likely(0, 0, 0, 3, 3, 0, 0, 0), ("shards",), (".index",)),
        Command("write", write, _likely(1, 2, 3, 0, 0, 1, 0, 0), ("folder",)),
        Command("prepare", prepare, {"archive": 4, "target": 2}, ("archives",)),
        Command("killed", killed, {"archive": 1, "target": 1}, ("archives",)),
        Command("full", full, {"archive": 1, "target": 1}, ("archives",)),
    )
}


def choose(rng: Random, kind: str, place: Place, begin: str = "") -> Command:
    """A command whose name begins so, and that is for the subject."""
    there = [each for each in COMMANDS.values() if place.subject.name in each.subjects]
    fit = [each for each in there if each.name.startswith(begin)] or there
    weights = [command.likely.get(kind, 0) for command in fit]
    return rng.choices(fit, weights if any(weights) else None)[0]
