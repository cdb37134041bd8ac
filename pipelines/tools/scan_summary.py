"""The report of a scan in words: a summary of a few lines, with warnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.tools.scan_report import ODD, Duplicates, Report

SAID = 10
"""Most bad files in the summary."""


def summary(report: Report) -> list[str]:
    """Return the summary, in lines for people."""
    total = sum(report.images.values())
    parts = ", ".join(f"{n:,} in {part}" for part, n in report.images.items())
    bad = [f"  {shown(name)}: {reason}" for name, reason in list(report.bad.items())[:SAID]]
    more = [f"  ... and {len(report.bad) - SAID:,} more"] * (len(report.bad) > SAID)
    ends = report.bad_for_their_end_alone
    odd = [f"{report.odd[kind]:,} {words}" for kind, words in ODD.items() if report.odd[kind]]
    return [
        f"checked {total:,} images: {parts}, {len(set().union(*report.classes.values())):,} classes",
        f"bad: {len(report.bad):,}" if report.bad else "bad: none",
        *bad,
        *more,
        *[f"  of these, {ends:,} lack only a JPEG file's end mark, bytes FF D9: with it they are whole"] * bool(ends),
        f"formats: {', '.join(f'{n:,} {name}' for name, n in report.formats.items())}",
        *(
            [f"sizes: {_size(report.smallest)} to {_size(report.largest)}"]
            if report.smallest and report.largest
            else []
        ),
        *[f"odd, but fine: {', '.join(odd)}"] * bool(odd),
        *(f"warning: {warning}" for warning in warnings(report)),
    ]


def _size(image: dict[str, Any]) -> str:
    return f"{image['width']}x{image['height']} ({shown(image['name'])})"


def warnings(report: Report) -> list[str]:
    """Return what training refuses, or what makes its figures worthless."""
    train, val = report.duplicates_within_train, report.duplicates_of_train_in_val
    found = [
        *["there is no train; training needs it"] * ("train" not in report.images),
        *["there is no val; training needs it, or data.validation_samples"] * (not report.images.keys() - {"train"}),
        *_classes(report.empty_classes, "without an image", "training refuses them: fill or remove them"),
        *_classes(report.classes_all_bad, "of bad images alone", "training refuses them: repair or remove them"),
        *_classes(
            report.classes_only_in_val, "that train lacks", "training refuses them: add them to train or remove them"
        ),
        *_classes(report.classes_of_one_image, "of one image", "that is little to learn from"),
    ]
    if val.count:
        found.append(
            f"{val.count:,} images to evaluate on are in train too, {_pair(val)}; the test would flatter: remove them"
        )
    if train.count:
        found.append(f"{train.count:,} images of train are copies of others in train, {_pair(train)}")
    if others := sum(report.other_files.values()):
        found.append(f"{others:,} other files in class folders; training ignores them")
    if unlistable := [name for name in report.bad if not listable(name)]:
        found.append(
            f"{len(unlistable)} bad files cannot be listed for their names, such as {shown(unlistable[0])}; remove them"
        )
    return found


def _classes(names: Sequence[str], kind: str, consequence: str) -> Iterable[str]:
    if names:
        yield f"{len(names):,} classes {kind}, such as {shown(names[0])}; {consequence}"


def _pair(found: Duplicates) -> str:
    one, other = found.first[0]
    return f"such as {shown(one)} = {shown(other)}"


def shown(name: str) -> str:
    """Return a name on one line, whatever it holds."""
    return name if name.isprintable() else ascii(name)


def listable(name: str) -> bool:
    """Return True if a list of names, a line each, can hold the name."""
    return name.splitlines() == [name] and bool(name.strip()) and not name.startswith("#")
