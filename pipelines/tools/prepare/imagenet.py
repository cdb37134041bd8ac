"""ImageNet (ILSVRC2012) from its three archives: train/WNID/*.JPEG and val/WNID/*.JPEG."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event

from pipelines.sources.parts import TRAIN
from pipelines.tools.prepare.filling import Filler, Progress, run
from pipelines.tools.prepare.imagenet_archives import training_images, validation_name
from pipelines.tools.prepare.imagenet_counts import counted, require_no_others
from pipelines.tools.prepare.imagenet_plan import VAL, Counts, Plan, Wanted, planned
from pipelines.tools.prepare.packed import opened
from pipelines.tools.prepare.place import Place, held
from pipelines.tools.prepare.room import in_gigabytes, require_room

OFFICIAL = Counts(classes=1000, train=1_281_167, val=50_000)
CHUNK = 500
"""Validation images that a thread gets at a time."""


def prepare(wanted: Wanted, out: Path, workers: int) -> str:
    """Write the folders, and return what to tell. Raises UserError."""
    plan = planned(wanted, OFFICIAL)
    require_no_others(out, plan)
    free = require_room(out, plan.bytes, (TRAIN, VAL))
    print(f"{out}: takes {in_gigabytes(plan.bytes)} on its disk, where {in_gigabytes(free)} are free", flush=True)
    with held(out) as place:
        _write(plan, place, workers)
        found = counted(out, plan)
    return (
        f"{out}: {found.classes:,} classes, {found.train:,} images in train, {found.val:,} in val; train on it with "
        f"data.name=imagenet {shlex.quote(f'data.path={out}')}"
    )


def _write(plan: Plan, place: Place, workers: int) -> None:
    for part in (TRAIN, VAL):
        place.folder(part)
        for wnid in plan.counts[part]:
            place.folder(part, wnid)
    stop = Event()
    filler = Filler(place, Progress(plan.bytes), stop)
    try:
        run(_tasks(plan, filler), workers, stop)
    finally:
        filler.progress.close()


def _tasks(plan: Plan, filler: Filler) -> list[Callable[[], None]]:
    """Return what the threads do: the validation images in chunks, and each class."""
    numbers = list(plan.val)
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    first = [partial(_fill_val, plan, filler, chunk) for chunk in chunks]
    return [*first, *(partial(_fill_class, plan, filler, wnid) for wnid in plan.classes)]


def _fill_val(plan: Plan, filler: Filler, numbers: list[int]) -> None:
    archive, folder = plan.wanted.val, filler.place.out / VAL
    with opened(archive) as file:
        images = ((plan.val[n], folder / plan.devkit.label(n) / validation_name(n)) for n in numbers)
        filler.fill(file, archive, images)


def _fill_class(plan: Plan, filler: Filler, wnid: str) -> None:
    archive, folder = plan.wanted.train, filler.place.out / TRAIN / wnid
    with opened(archive) as file:
        named = training_images(file, plan.classes[wnid], wnid)
        images = ((member, folder / name) for member, name in named)
        plan.counts[TRAIN][wnid], size = filler.fill(file, archive, images)
    filler.progress.advance(plan.classes[wnid].size - size)  # Headers.
