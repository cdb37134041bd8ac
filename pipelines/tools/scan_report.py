"""The report of a scan, collected from facts about each image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.images.reference import LACKS_END
from pipelines.sources.base import Encoded
from pipelines.tools.scan_facts import Facts

NAMED = 20
"""Most names of a kind in the report; there may be thousands. Bad files are all named."""
ODD = {
    "greyscale": "greyscale",
    "cmyk": "CMYK",
    "transparent": "with transparency",
    "turned": "turned by EXIF",
    "misnamed": "whose extension names another format",
    "huge": "over 100 megapixels",
}


@dataclass
class Part:
    """A part of the data set, such as train, and what has been found there."""

    name: str
    source: Encoded
    classes: tuple[str, ...]
    """Classes that exist, with images or without."""
    other_files: int = 0
    """Files in class folders whose extension is no image's."""
    faults: dict[int, str] = field(default_factory=dict)
    digests: NDArray[np.uint64] = field(init=False)
    """uint64 [samples]: checksums of the good samples' content."""

    def __post_init__(self) -> None:
        self.digests = np.zeros(len(self.source.labels), dtype=np.uint64)

    @property
    def good(self) -> NDArray[np.int64]:
        """Indices of the good samples, int64."""
        every = np.arange(len(self.digests), dtype=np.int64)
        return np.setdiff1d(every, np.array(list(self.faults), dtype=np.int64))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of images and of bad images, by class."""
        names, labels = self.source.class_names, self.source.labels
        images = Counter(names[label] for label in labels.tolist())
        bad = Counter(names[labels[index]] for index in self.faults)
        return {name: {"images": images[name], "bad": bad[name]} for name in self.classes}


@dataclass
class Tally:
    """Counts while the scan runs."""

    parts: dict[str, Part]
    formats: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    smallest: tuple[Any, ...] | None = None
    """(pixels, part, index, (width, height))"""
    largest: tuple[Any, ...] | None = None
    huge: list[str] = field(default_factory=list)

    def add(self, part: str, index: int, facts: Facts) -> None:
        """Count one sample."""
        if facts.fault is not None:
            self.parts[part].faults[index] = facts.fault
            return
        self.parts[part].digests[index] = facts.digest
        self.formats[facts.format] += 1
        self.odd.update(facts.odd)
        if "huge" in facts.odd:
            self.huge.append(self.parts[part].source.name(index))
        if facts.size is not None:
            place = (facts.size[0] * facts.size[1], part, index, facts.size)
            self.smallest = min(self.smallest or place, place)
            self.largest = max(self.largest or place, place)

    def report(self) -> Report:
        """Return the report on the samples counted so far."""
        names = {part.name: part.source.name for part in self.parts.values()}

        def sized(place: tuple[Any, ...] | None) -> dict[str, Any] | None:
            if place is None:
                return None
            _, part, index, (width, height) = place
            return {"width": width, "height": height, "name": names[part](index)}

        return Report(
            images={part.name: len(part.digests) for part in self.parts.values()},
            classes={part.name: part.counts() for part in self.parts.values()},
            other_files={part.name: part.other_files for part in self.parts.values()},
            bad={names[part.name](i): why for part in self.parts.values() for i, why in sorted(part.faults.items())},
            formats=dict(sorted(self.formats.items())),
            odd={kind: self.odd[kind] for kind in ODD},
            smallest=sized(self.smallest),
            largest=sized(self.largest),
            over_100_megapixels=sorted(self.huge),
            duplicates_within_train=_within(self.parts["train"]) if "train" in self.parts else Duplicates(),
            duplicates_of_train_in_val=_between(self.parts) if "train" in self.parts else Duplicates(),
        )


@dataclass(frozen=True)
class Duplicates:
    """Files with the same content as others."""

    count: int = 0
    first: tuple[tuple[str, str], ...] = ()
    """Up to twenty of them, each with the one that it equals."""


@dataclass(frozen=True)
class Report:
    """The report. Names are as in `data.exclude`."""

    images: dict[str, int]
    """Numbers by part."""
    classes: dict[str, dict[str, dict[str, int]]]
    """Numbers of images and of bad images, by part and class."""
    other_files: dict[str, int]
    bad: dict[str, str]
    """Reasons by name."""
    bad_for_their_end_alone: int = field(init=False)
    """JPEG files that lack their end mark, but no pixels."""
    formats: dict[str, int]
    """Numbers of good images by format of the content. All fields below count good images too."""
    odd: dict[str, int]
    smallest: dict[str, Any] | None
    largest: dict[str, Any] | None
    over_100_megapixels: list[str]
    duplicates_within_train: Duplicates
    duplicates_of_train_in_val: Duplicates
    empty_classes: list[str] = field(init=False)
    classes_all_bad: list[str] = field(init=False)
    classes_only_in_val: list[str] = field(init=False)
    classes_of_one_image: list[str] = field(init=False)

    def __post_init__(self) -> None:
        every = [(f"{part}/{name}", n) for part, classes in self.classes.items() for name, n in classes.items()]
        train = self.classes.get("train", {})
        others = [name for part, classes in self.classes.items() if part != "train" for name in classes]
        found: dict[str, Any] = {
            "bad_for_their_end_alone": sum(reason == LACKS_END for reason in self.bad.values()),
            "empty_classes": [name for name, n in every if n["images"] == 0],
            "classes_all_bad": [name for name, n in every if 0 < n["images"] == n["bad"]],
            "classes_only_in_val": sorted(set(others) - set(train)) if train else [],
            "classes_of_one_image": [name for name, n in every if n["images"] == 1],
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)


def _within(part: Part) -> Duplicates:
    good = part.good
    _, first, which = np.unique(part.digests[good], return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which] != np.arange(len(good)))
    name = part.source.name
    pairs = ((name(good[i]), name(good[first[which[i]]])) for i in again[:NAMED])
    return Duplicates(len(again), tuple(pairs))


def _between(parts: dict[str, Part]) -> Duplicates:
    """Return the images of train that are in parts for evaluation, too."""
    train = parts["train"]
    known = train.good
    digests, first = np.unique(train.digests[known], return_index=True)
    count = 0
    pairs: list[tuple[str, str]] = []
    for part in parts.values():
        if part is not train:
            tested = part.good
            again = np.flatnonzero(np.isin(part.digests[tested], digests))
            like = first[np.searchsorted(digests, part.digests[tested[again[:NAMED]]])]
            pairs += zip(map(part.source.name, tested[again[:NAMED]]), map(train.source.name, known[like]), strict=True)
            count += len(again)
    return Duplicates(count, tuple(pairs[:NAMED]))
