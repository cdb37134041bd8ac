"""A plan of the classes and images to write, checked against the devkit before anything is written."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.files import read_text
from pipelines.common.text import some_of
from pipelines.sources.parts import TRAIN, VALIDATION
from pipelines.sources.tar_headers import Member
from pipelines.tools.prepare.imagenet_archives import class_tars, validation_images, validation_name
from pipelines.tools.prepare.imagenet_devkit import Devkit, read
from pipelines.tools.prepare.packed import require_there
from pipelines.tools.prepare.synsets import WNID

VAL = VALIDATION[0]
TRAIN_ARCHIVE, VAL_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
ALLOW = "copy it anew, or give --allow-fewer"


@dataclass(frozen=True)
class Counts:
    """Numbers of classes and images."""

    classes: int
    train: int
    val: int


@dataclass(frozen=True)
class Wanted:
    """A request for ImageNet, or for a part of it."""

    archives: Path
    classes: Path | None = None
    """List of the WNIDs to take; None for all."""
    fewer: bool = False
    """True if fewer classes or images than the official ones will do."""

    @property
    def train(self) -> Path:
        """Archive of the training images."""
        return self.archives / TRAIN_ARCHIVE

    @property
    def val(self) -> Path:
        """Archive of the validation images."""
        return self.archives / VAL_ARCHIVE

    @property
    def devkit(self) -> Path:
        """Archive of the devkit."""
        return self.archives / DEVKIT_ARCHIVE

    def judge(self, problems: Iterable[str]) -> None:
        """Raise UserError for things that are missing, or warn of them if fewer will do."""
        problems = list(problems)
        if problems and not self.fewer:
            raise UserError(*problems)
        for problem in problems:
            print(f"warning: {problem.removesuffix(f'; {ALLOW}')}", file=sys.stderr)


@dataclass(frozen=True)
class Plan:
    """Everything that is to be written."""

    wanted: Wanted
    official: Counts
    devkit: Devkit
    classes: dict[str, Member]
    """The tar of each class, by WNID."""
    val: dict[int, Member]
    """Validation images of these classes, by their numbers."""
    counts: dict[str, dict[str, int]]
    """Images of each class in the archives, by part. Those of train are known when the tar of the class was read."""

    @property
    def bytes(self) -> int:
        """Bytes that the images take on a disk, roughly."""
        return sum(member.size for found in (self.classes, self.val) for member in found.values())


def planned(wanted: Wanted, official: Counts) -> Plan:
    """Return what is to be written. Raises UserError if the archives do not have it."""
    require_there(wanted.archives, (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE))
    print(f"{wanted.archives}: reading the names in the archives", flush=True)  # On a slow disk it takes minutes.
    devkit = read(wanted.devkit)
    classes = _classes(wanted, devkit, official)
    val = _validation(wanted, devkit, official, classes.keys())
    counts = {TRAIN: dict.fromkeys(classes, 0), VAL: dict(Counter(map(devkit.label, val)))}
    return Plan(wanted, official, devkit, classes, val, counts)


def _classes(wanted: Wanted, devkit: Devkit, official: Counts) -> dict[str, Member]:
    """Return the tars of the classes that are wanted. Raises UserError."""
    names, tars = _names(wanted, devkit), class_tars(wanted.train)
    if unknown := sorted(tars.keys() - devkit.synsets.keys()):
        raise UserError(
            f"{wanted.train} has {len(unknown):,} classes that the devkit does not know, such as {unknown[0]}; "
            "give the archives of one ImageNet, ILSVRC2012"
        )
    wanted.judge(_missing_classes(wanted, tars, names, official))
    if not (chosen := sorted(tars.keys() & names)):
        raise UserError(f"{wanted.train} has none of the classes; give the official archive")
    return {wnid: tars[wnid] for wnid in chosen}


def _names(wanted: Wanted, devkit: Devkit) -> set[str]:
    """Return the WNIDs to take. Raises UserError for a list that is invalid, or of others."""
    if wanted.classes is None:
        return set(devkit.synsets)
    try:
        lines = read_text(wanted.classes).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", "is no UTF-8")
        raise UserError(f"--classes is {wanted.classes}, which cannot be read ({reason}); give a list") from None
    words = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    unknown = [word for word in words if not WNID.fullmatch(word) or word not in devkit.synsets]
    if unknown or not words:
        odd = f"names {unknown[0]}, which is no class of the devkit" if unknown else "names no class"
        raise UserError(f"--classes: {wanted.classes} {odd}; write a WNID a line, such as {min(devkit.synsets)}")
    return set(words)


def _missing_classes(wanted: Wanted, tars: Iterable[str], names: set[str], official: Counts) -> Iterable[str]:
    there = set(tars)
    if wanted.classes is None and len(there) != official.classes:
        yield f"{wanted.train} has {len(there):,} classes, ImageNet {official.classes:,}; {ALLOW}"
    if missing := sorted(names - there):
        yield f"{wanted.train} lacks {len(missing):,} classes: {some_of(missing)}; {ALLOW}"


def _validation(wanted: Wanted, devkit: Devkit, official: Counts, classes: Iterable[str]) -> dict[int, Member]:
    """Return the validation images of the classes, by number. Raises UserError."""
    images, chosen = validation_images(wanted.val), set(classes)
    numbers = [number for number in range(1, len(devkit.labels) + 1) if devkit.label(number) in chosen]
    wanted.judge(_missing_images(wanted, devkit, official, [n for n in numbers if n not in images]))
    if (last := max(images, default=0)) > len(devkit.labels):
        raise UserError(
            f"{wanted.val} has {validation_name(last)}, and the devkit has labels for {len(devkit.labels):,} images; "
            "give the official archives"
        )
    return {number: images[number] for number in numbers if number in images}


def _missing_images(wanted: Wanted, devkit: Devkit, official: Counts, missing: list[int]) -> Iterable[str]:
    if (labels := len(devkit.labels)) != official.val:
        yield f"{wanted.devkit} has labels for {labels:,} images, not {official.val:,}; {ALLOW}"
    if missing:
        yield f"{wanted.val} lacks {len(missing):,} images: {some_of(map(validation_name, missing), 3)}; {ALLOW}"
