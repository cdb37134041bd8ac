"""Judges what programs said of damaged inputs, and what they left behind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynsparse.errors import EXIT_BAD_INPUT, EXIT_DONE
from pipelines.common.text import one_line
from pipelines.sources.parts import UNFINISHED
from tests.fuzz.children import Outcome
from tests.fuzz.inputs import archive_files, preparing
from tests.fuzz.inputs.commands import LOADERS
from tests.fuzz.inputs.place import Place
from tests.fuzz.outcomes import of_end, of_words
from tests.fuzz.scene import Snapshot, changes

GREY_LEVELS = 1.5
"""Mean difference of an image's pixels between the loaders, in grey levels of 0 to 255."""
_SKIPPED = re.compile(r"skipping (.*?) \(class .*?, sample \d+ of \d+\), [^:]*: (.*)")
_LOGGED = ("error: skipping ", "error: more bad files")
_OTHER = re.compile(r"number_of_classes|validation_samples")
_OFFICIAL = {
    "imagenet": r"(train/(n[0-9]{8})/\2_[0-9]{1,9}|val/n[0-9]{8}/ILSVRC2012_val_[0-9]{8})\.JPEG",
    "cifar10": r"cifar-10-batches-py/(data_batch_[1-5]|test_batch|batches\.meta)",
    "mnist": r"MNIST/raw/(train|t10k)-(images-idx3|labels-idx1)-ubyte",
}
"""Paths of the files that may be made."""
_NONE = re.compile(r"no good sample left|none of \d+ samples")
_IN_A_BATCH = re.compile(r"(epoch \d+, batch \d+|evaluation): ")


@dataclass(frozen=True)
class Seen:
    """The programs of a case, in their order."""

    lines: Sequence[Sequence[str]]
    outcomes: Sequence[Outcome]
    verdicts: Mapping[str, str | None]
    """Verdicts of the loader on each suspect, in a training that skips; empty otherwise."""


def faults(command: str, place: Place, seen: Seen, before: Snapshot) -> list[str]:
    """All that must not be, a line each; its first word is its kind. Empty if all is well."""
    decoders, found = bool(place.suspects), []
    for outcome in seen.outcomes:
        found += [*of_end(outcome), *of_words(outcome, decoders=decoders), *raw(outcome)]
    if place.has_own_config and _began(place):
        found = [fault for fault in found if not fault.startswith("hang")]  # It trains as long as it was asked to.
    found += [f"changed: {line}" for line in changes(before, place.protected())]
    if all(outcome.code in (EXIT_DONE, EXIT_BAD_INPUT) for outcome in seen.outcomes):
        found += RULES.get(command, lambda *_: [])(place, seen)
    return found


def raw(outcome: Outcome) -> list[str]:
    """Bytes that steer a terminal, or break a line, of a name that was not escaped."""
    said = outcome.err + outcome.out
    odd = sorted({repr(c) for c in said if not c.isprintable() and c != "\n"})
    return [f"raw: {' '.join(odd[:5])} in the output"] if odd else []


def names_of(place: Place) -> list[str]:
    return [one_line(name) for name in place.suspects]


def _began(place: Place) -> bool:
    """Whether a run took its folder: what comes after was met in training."""
    return (place.home / "runs" / "a" / "config.yaml").exists()


def starts(place: Place, seen: Seen) -> list[str]:
    """A check refuses what a start refuses at once, in the same words, and nothing else; a bad image is named."""
    checked, started = seen.outcomes
    at_once = started.code == EXIT_BAD_INPUT and not _began(place)
    found = checks(checked, started, at_once=at_once)
    if not at_once and place.suspects:
        found += names(place, started, seen.verdicts, skips="data.on_bad_file=skip" in seen.lines[1])
    return found


def checks(checked: Outcome, started: Outcome, *, at_once: bool) -> list[str]:
    said, says = errors(checked), errors(started)
    if at_once and checked.code != EXIT_BAD_INPUT:
        return [f"check: passed, and a start refuses at once: {says[0]}"]
    if not at_once and checked.code == EXIT_BAD_INPUT:
        return [f"check: refused what a start takes: {said[0]}"]
    if at_once and not set(says) <= set(said):  # A check says all that it refuses.
        return [f"check: said {said[0][:150]}; a start says {says[0][:150]}"]
    return []


def errors(outcome: Outcome) -> list[str]:
    """Less those of files that are skipped, which are the log's."""
    found = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    return [line for line in found if not line.startswith(_LOGGED)] or [""]


def names(place: Place, outcome: Outcome, verdicts: Mapping[str, str | None], *, skips: bool) -> list[str]:
    """Each bad image is named, and no other."""
    suspects = names_of(place)
    said = errors(outcome)[-1]
    if outcome.code == EXIT_BAD_INPUT and not _NONE.search(said) and not any(name in said for name in suspects):
        return [f"unnamed: {said[:300]}"]
    skipped = dict(_SKIPPED.findall(outcome.err))
    if outcome.code != EXIT_DONE or not skips:
        return []
    found = [
        f"unnamed: {name} is bad ({fault}) and was not skipped"
        for name, fault in verdicts.items()
        if fault is not None and one_line(name) not in skipped
    ]
    whole = [name for name in skipped if verdicts.get(name) is None and name in map(one_line, verdicts)]
    return found + [f"named: {name} is skipped though it is whole" for name in whole]


def looks(place: Place, seen: Seen) -> list[str]:
    """Both loaders find the same images bad, for the same reason, and make the same pixels of all others."""
    first, second = seen.outcomes
    if first.code != second.code or errors(first) != errors(second):
        pairs = zip(LOADERS, seen.outcomes, strict=True)
        return ["verdict: " + "; ".join(f"{name} {errors(end)[0][:150] or 'takes it'}" for name, end in pairs)]
    if first.code != EXIT_DONE:
        return []
    bad = [dict(_SKIPPED.findall(outcome.err)) for outcome in seen.outcomes]
    found = [
        f"verdict: {name}: "
        + "; ".join(f"{loader} {of.get(name, 'takes it')}" for loader, of in zip(LOADERS, bad, strict=True))
        for name in sorted(bad[0].keys() | bad[1].keys())
        if bad[0].get(name) != bad[1].get(name)
    ]
    return found or _pixels(place, bad[0])


def _pixels(place: Place, bad: Mapping[str, str]) -> list[str]:
    with np.load(place.home / "out/dali.npz") as first, np.load(place.home / "out/torch.npz") as second:
        found = []
        for part in first.files:
            if first[part].shape != second[part].shape:
                return [f"pixels: {part} has shape {first[part].shape} and {second[part].shape}"]
            differences = np.abs(first[part] - second[part]).mean((1, 2, 3))
            there = [name for name in place.subject.images if name.startswith(f"{part}/") and name not in bad]
            for number in np.flatnonzero(~(differences < GREY_LEVELS)):
                name = there[number] if len(there) == len(differences) else f"image {number} of {part}"
                found.append(f"pixels: {name} differs by {differences[number]:.1f} grey levels")
        return found


def scans(place: Place, seen: Seen) -> list[str]:
    """Find inputs that a scan accepts and training refuses."""
    scanned, trained = seen.outcomes
    if scanned.code != EXIT_DONE or trained.code == EXIT_DONE or not _began(place):
        return []
    return [f"scan: passed what training cannot have: {errors(trained)[-1][:300]}"]


def writes(place: Place, seen: Seen) -> list[str]:
    """Whole or not at all, and what is written can be trained on."""
    written, trained = seen.outcomes
    if written.code == EXIT_BAD_INPUT and os.path.lexists(place.home / "out" / "shards"):
        return ["partial: refused, and left a folder"]
    said = errors(trained)[0]
    # The config says three classes and no samples to hold out; a folder may rightly have had other parts.
    rightly = _OTHER.search(said) or place.has_own_config
    if written.code == EXIT_DONE and trained.code == EXIT_BAD_INPUT and not _began(place) and not rightly:
        return [f"written: and refused at once: {said[:300]}"]
    return []


def prepares(place: Place, seen: Seen) -> list[str]:
    """Whole, or marked as unfinished; and the same command again changes nothing, or goes on to the end."""
    first, second = seen.outcomes
    made, sound = place.home / preparing.OUT, archive_files.EXPECTED[place.data_set]()
    found = [f"beside: {name}" for name in os.listdir(made.parent) if name != made.name]
    if (made / UNFINISHED).is_dir() and second.code == EXIT_DONE:
        found.append("finished: and marked as unfinished")
    if seen.lines[0][0] == "prepare" and first.code == EXIT_DONE != second.code:
        found.append(f"again: refused what was done: {errors(second)[0][:200]}")
    if place.completes and second.code != EXIT_DONE:
        found.append(f"refused: what could be done: {errors(second)[0][:200]}")
    there = {name: (made / name).read_bytes() for name in sound if _is_file(made / name)}
    if second.code == EXIT_DONE and place.touched == "target" and there != sound:
        found.append(f"files: {sorted(name for name in sound if there.get(name) != sound[name])[:3]} not as archived")
    return found + _strange(place, made, second)


def _strange(place: Place, made: Path, ended: Outcome) -> list[str]:
    """Files that no archive has, made of a damaged one; and a folder that is not whole, and has no mark."""
    if place.touched == "target" or not os.path.lexists(made):
        return []
    files = [path.relative_to(made) for path in made.rglob("*") if not path.is_dir() and path.parent.name != UNFINISHED]
    links = [path for path in made.rglob("*") if path.is_symlink()]
    odd = [str(path) for path in files if not re.fullmatch(_OFFICIAL[place.data_set], str(path))]
    marked = ended.code == EXIT_DONE or (made / UNFINISHED).is_dir()
    return [f"strange: {name!r}" for name in [*odd, *links][:3]] + ([] if marked else ["unmarked: and refused"])


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def looks_first(place: Place, seen: Seen) -> list[str]:
    """Judge a program by the rules of a start. It may refuse after its first batch, which no check can foresee."""
    checked, done = seen.outcomes
    in_a_batch = any(_IN_A_BATCH.search(line) or _NONE.search(line) for line in errors(done))
    return checks(checked, done, at_once=done.code == EXIT_BAD_INPUT and not in_a_batch)


RULES: dict[str, Callable[[Place, Seen], list[str]]] = {
    "start": starts,
    "preview": looks_first,
    "evaluate": looks_first,
    "dry-run": looks_first,
    "agree": looks,
    "scan": scans,
    "write": writes,
    "prepare": prepares,
    "killed": prepares,
    "full": prepares,
}


def parsed(outcome: Outcome) -> dict[str, str | None]:
    """Read the output of `verdicts`, empty if it failed."""
    try:
        return dict(json.loads(outcome.out))
    except ValueError:
        return {}
