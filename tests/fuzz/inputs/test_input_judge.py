"""The judge of inputs sees each kind of failure, and lets pass what is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.sources.parts import UNFINISHED
from tests.fuzz.children import Outcome
from tests.fuzz.inputs import archive_files, judge, preparing
from tests.fuzz.inputs.place import Place, Subject, build

BAD = "train/ape/0.png"
SKIPPED = f"error: skipping {BAD} (class ape, sample 0 of 2), epoch 0, batch 0: is empty\n"


def ended(code: int | None, err: str = "", out: str = "", **how: bool) -> Outcome:
    return Outcome(code, out, err, 1.0, 0, **how)


DONE, REFUSED, OTHER = ended(0), ended(2, "error: x\n"), ended(2, "error: y\n")
LATER = ended(2, f"error: data.path: data: {BAD} (class ape, sample 0 of 2), epoch 0, batch 0: is empty\n")
TRACEBACK = "Traceback (most recent call last):\nx\n"

# By what happened: the command, how its programs ended, whether a run began, what is wrong with the image, the faults.
PLANTED: dict[str, tuple[str, list[Outcome], bool, str | None, list[str]]] = {
    "success": ("start", [DONE, DONE], True, None, []),
    "both refuse": ("start", [REFUSED, REFUSED], False, None, []),
    "a check that passes": ("start", [DONE, REFUSED], False, None, ["check"]),
    "a check that refuses": ("start", [REFUSED, DONE], True, None, ["check"]),
    "a check of other words": ("start", [OTHER, REFUSED], False, None, ["check"]),
    "a bad image that is named": ("start", [DONE, LATER], True, "is empty", []),
    "a bad image that is not": ("start", [DONE, REFUSED], True, "is empty", ["unnamed"]),
    "a bad image skipped": ("start", [DONE, ended(0, SKIPPED)], True, "is empty", []),
    "a bad image in silence": ("start", [DONE, DONE], True, "is empty", ["unnamed"]),
    "a whole image skipped": ("start", [DONE, ended(0, SKIPPED)], True, None, ["named"]),
    "a refusal in a batch of an evaluation": ("evaluate", [DONE, LATER], False, "is empty", []),
    "a refusal before it": ("evaluate", [DONE, REFUSED], False, "is empty", ["check"]),
    "one loader refuses": ("agree", [DONE, REFUSED], False, None, ["verdict"]),
    "one loader skips": ("agree", [DONE, ended(0, SKIPPED)], False, None, ["verdict"]),
    "other reasons": ("agree", [ended(0, SKIPPED), ended(0, SKIPPED.replace("empty", "x"))], False, None, ["verdict"]),
    "both skip": ("agree", [ended(0, SKIPPED)] * 2, False, None, []),
    "a scan that passed a bad image": ("scan", [DONE, LATER], True, None, ["scan"]),
    "shards that cannot be used": ("write", [DONE, REFUSED], False, None, ["written"]),
    "a traceback": ("check", [ended(1, TRACEBACK)], False, None, ["exit", "traceback"]),
    "a hang": ("check", [ended(None, hung=True)], False, None, ["hang"]),
    "memory": ("check", [ended(None, bloated=True)], False, None, ["memory"]),
    "codes of a terminal": ("check", [ended(2, "error: \x1b[31m\n")], False, None, ["raw"]),
    "words of a decoder": ("check", [ended(2, "Bogus table\nerror: a\n")], False, None, []),
    "words of a decoder alone": ("check", [ended(2, "Bogus table\n")], False, None, ["words"]),
    "a warning of Python's": ("check", [ended(2, "/a/b.py:1: UserWarning: c\nerror: a\n")], False, None, ["words"]),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    source = tmp_path / "source"
    (source / "data/train/ape").mkdir(parents=True)
    (source / "data" / BAD).touch()
    return build(tmp_path / "home", Subject("folder", source, {}, (BAD, "train/bee/0.png")))


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str, place: Place) -> None:
    command, outcomes, began, fault, expected = PLANTED[name]
    if began:
        (place.home / "runs/a").mkdir()
        (place.home / "runs/a/config.yaml").touch()
    place.suspects[BAD] = b""
    for loader in ("dali", "torch"):
        np.savez(place.home / "out" / loader, train=np.zeros((1, 3, 2, 2), dtype=np.float32))
    seen = judge.Seen([["x", "data.on_bad_file=skip"]] * 2, outcomes, {BAD: fault})
    found = judge.faults(command, place, seen, place.protected())
    assert [line.partition(":")[0] for line in found] == expected, found


def test_a_long_training_is_no_hang(place: Place) -> None:
    (place.home / "runs/a").mkdir()
    (place.home / "runs/a/config.yaml").touch()
    seen = judge.Seen([[], []], [DONE, ended(None, hung=True)], {})
    assert judge.faults("start", place, seen, place.protected()) == ["hang: killed after 1 s"]
    place.overrides.append("train.epochs=2147483647")
    assert judge.faults("start", place, seen, place.protected()) == []


def test_other_pixels_are_found(place: Place) -> None:
    for loader, level in (("dali", 0), ("torch", 3)):
        pixels = np.zeros((2, 3, 2, 2), dtype=np.float32)
        pixels[1] = level
        np.savez(place.home / "out" / loader, train=pixels)
    seen = judge.Seen([[], []], [DONE, DONE], {})
    assert judge.faults("agree", place, seen, place.protected()) == [
        "pixels: train/bee/0.png differs by 3.0 grey levels"
    ]


def test_a_broken_line_is_found(place: Place) -> None:
    seen = judge.Seen([[]], [ended(2, "error: a\nb\n")], {})
    assert judge.faults("check", place, seen, place.protected()) == ["words: b"]


def test_a_change_of_the_data_is_found(place: Place) -> None:
    before = place.protected()
    (place.data / BAD).write_text("x")
    (place.home / "runs" / "free").touch()
    (place.home / "beside").touch()
    found = judge.faults("check", place, judge.Seen([[]], [DONE], {}), before)
    assert [line.split(":")[:2] for line in found] == [["changed", " beside"], ["changed", f" data/{BAD}"]]


def test_a_folder_that_is_left_is_found(place: Place) -> None:
    (place.home / "out" / "shards").mkdir()
    found = judge.faults("write", place, judge.Seen([[], []], [REFUSED, REFUSED], {}), place.protected())
    assert found == ["partial: refused, and left a folder"]


NEW = "train/n01000001/n01000001_8.JPEG"
# By what was prepared: how the commands ended, files beside those of the archives, whether it is marked, what is wrong.
PREPARED: dict[str, tuple[list[Outcome], dict[str, bytes], bool, list[str]]] = {
    "success": ([DONE, DONE], {}, False, []),
    "a stop": ([DONE, REFUSED], {}, True, ["again"]),
    "a refusal": ([REFUSED, REFUSED], {}, True, []),
    "a refusal without a mark": ([REFUSED, REFUSED], {}, False, ["unmarked"]),
    "a mark that is left": ([DONE, DONE], {}, True, ["finished"]),
    "another image": ([DONE, DONE], {NEW: b"x"}, False, []),
    "another name": ([DONE, DONE], {"train/n01000001/../../x": b"x"}, False, ["strange"]),
    "another class's": ([DONE, DONE], {"train/n01000001/n02000002_8.JPEG": b"x"}, False, ["strange"]),
    "a file outside": ([DONE, DONE], {"../x": b"x"}, False, ["beside"]),
}


@pytest.mark.parametrize("name", PREPARED)
def test_what_is_planted_in_a_prepared_folder_is_found(name: str, place: Place) -> None:
    outcomes, files, marked, expected = PREPARED[name]
    made = place.home / preparing.OUT
    for path, content in {**archive_files.EXPECTED["imagenet"](), **files}.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_bytes(content)
    if marked:
        (made / UNFINISHED).mkdir()
    seen = judge.Seen([["prepare"]] * 2, outcomes, {})
    found = judge.faults("prepare", place, seen, place.protected())
    assert [line.partition(":")[0] for line in found] == expected, found


def test_files_that_are_not_as_archived_are_found(place: Place) -> None:
    """The archives are whole, and the command must end well."""
    place.touched, place.completes, made = "target", True, place.home / preparing.OUT
    for path, content in archive_files.EXPECTED["imagenet"]().items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_bytes(content[:-1] + b"x")
    lines = [["killed"], ["prepare"]]
    found = judge.faults("killed", place, judge.Seen(lines, [DONE, DONE], {}), place.protected())
    assert [line.partition(":")[0] for line in found] == ["files"]
    found = judge.faults("killed", place, judge.Seen(lines, [DONE, REFUSED], {}), place.protected())
    assert [line.partition(":")[0] for line in found] == ["refused"]
