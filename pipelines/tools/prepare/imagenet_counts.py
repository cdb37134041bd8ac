"""Numbers of images in the folders, compared with the archives' own listing and with the official numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.text import some_of
from pipelines.sources.class_folders import class_folders, class_names
from pipelines.sources.parts import TRAIN
from pipelines.tools.prepare.imagenet_plan import ALLOW, VAL, Counts, Plan


def require_no_others(out: Path, plan: Plan) -> None:
    """Raise UserError for class folders that are not of the plan: they would be trained on."""
    for part in (TRAIN, VAL):
        there = class_names(out / part) if (out / part).is_dir() else []
        if others := sorted(set(there) - plan.classes.keys()):
            raise UserError(
                f"--out: {out / part} has {len(others):,} class folders of other data, such as {others[0]}; "
                "move them away, or give another --out"
            )


def counted(out: Path, plan: Plan) -> Counts:
    """Count what is there. Raises UserError if it is not what the archives list, or not all of ImageNet."""
    if problems := [line for part in (TRAIN, VAL) for line in _differences(out / part, plan.counts[part])]:
        raise UserError(*problems)
    found = Counts(len(plan.classes), sum(plan.counts[TRAIN].values()), len(plan.val))
    plan.wanted.judge(_fewer(plan, found))
    return found


def _differences(folder: Path, listed: dict[str, int]) -> Iterable[str]:
    there = {name: images for name, (images, _) in class_folders(folder).items()}
    if empty := [name for name, count in listed.items() if count == 0]:
        yield f"{folder}: the archive has no image of {some_of(empty)}; leave it out by --classes, or copy it anew"
    if fewer := [f"{name} ({there.get(name, 0):,} of {n:,})" for name, n in listed.items() if there.get(name, 0) < n]:
        yield f"{folder} has fewer images than the archive lists: {some_of(fewer)}; give the command again"
    if more := [f"{name} ({there[name]:,} of {n:,})" for name, n in listed.items() if there.get(name, 0) > n]:
        yield f"{folder} has more images than the archive lists: {some_of(more)}; remove those, or give another --out"


def _fewer(plan: Plan, found: Counts) -> Iterable[str]:
    """Yield what is missing of the training images that are wanted. Raises UserError for more than ImageNet has."""
    archive, official = plan.wanted.train, plan.official.train
    if found.train > official:
        raise UserError(
            f"{archive} has {found.train:,} images, more than ImageNet's {official:,}; give the official archive"
        )
    where = _where(plan)
    if plan.wanted.classes is None and found.train < official:
        yield f"{archive} has {found.train:,} images, ImageNet {official:,}{where}; {ALLOW}"
    elif plan.wanted.classes is not None and where:
        yield f"{archive} has {found.train:,} images of these classes{where}; {ALLOW}"


def _where(plan: Plan) -> str:
    """Return in which classes images are missing, as far as the devkit says."""
    known = {name: plan.devkit.synsets[name].images for name in plan.classes}
    counts = plan.counts[TRAIN]
    fewer = [f"{name} ({counts[name]:,} of {n:,})" for name, n in known.items() if counts[name] < n]
    return f", fewer than the devkit says of {some_of(fewer)}" if fewer else ""
