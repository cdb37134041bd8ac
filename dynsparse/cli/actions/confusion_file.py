"""`--confusion FILE`: a confusion matrix as CSV, as a picture too, and the accuracy of each class in words."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from importlib.util import find_spec
from os.path import isdir
from pathlib import Path

from dynsparse.errors import UserError
from dynsparse.training.confusion import Confusion
from pipelines.common.extras import install_command
from pipelines.common.text import cut, one_line

CSV, PICTURES = ".csv", (".png", ".svg")
_MOST_SAID = 20
"""Classes that are printed; of more, the weakest."""
_MOST_NAMED = 40
"""Classes whose names a picture has room for."""


def require_file(file: str) -> None:
    """Raise UserError for a file that cannot be written, or is of no kind that is known."""
    path = Path(file)
    if path.suffix not in (CSV, *PICTURES):
        raise UserError(f"--confusion: {path} has none of the endings {CSV}, {', '.join(PICTURES)}; name one that has")
    if not isdir(path.absolute().parent) or isdir(path):
        raise UserError(f"--confusion: {path} cannot be written; name a file in a folder that is there")
    if path.suffix in PICTURES and find_spec("matplotlib") is None:
        raise UserError(f"--confusion: {path} needs matplotlib: {install_command('report')}, or name a {CSV}")


def write_confusion(file: str, confusion: Confusion, names: Sequence[str]) -> list[Path]:
    """Write the CSV, and the picture if `file` is one. Returns the files. UserError if they cannot be written."""
    path = Path(file)
    contents = {path.with_suffix(CSV): as_csv(confusion, names).encode()}
    if path.suffix in PICTURES:
        contents[path] = _picture(confusion, names, path.suffix.removeprefix("."))
    for target, content in contents.items():
        try:
            target.write_bytes(content)
        except OSError as error:
            raise UserError(f"--confusion: {target} cannot be written ({error.strerror}); name another file") from None
    return list(contents)


def as_csv(confusion: Confusion, names: Sequence[str]) -> str:
    """Return a row a true class: how often it was taken for each class, its samples, its accuracy in percent."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["true class", *names, "samples", "accuracy"])
    parts = zip(names, confusion.counts.tolist(), confusion.samples, confusion.accuracies, strict=True)
    for name, counts, samples, accuracy in parts:
        rows.writerow([name, *counts, samples, "" if accuracy is None else f"{accuracy:.2f}"])
    return text.getvalue()


def by_class(confusion: Confusion, names: Sequence[str], *, averaged: bool = False) -> list[str]:
    """Return a line for each class, or for the weakest of many. `averaged`: of the average of the weights."""
    known = [
        (accuracy, one_line(name), samples)
        for accuracy, name, samples in zip(confusion.accuracies, names, confusion.samples, strict=True)
        if accuracy is not None
    ]
    head = "accuracy by class" + (" of the averaged weights" if averaged else "")
    if len(known) > _MOST_SAID:
        known, head = sorted(known)[:_MOST_SAID], f"{head}, the weakest {_MOST_SAID} of {len(known)}"
    return [f"{head}:", *(f"  {name}: {accuracy:.2f} % of {samples:,}" for accuracy, name, samples in known)]


def _picture(confusion: Confusion, names: Sequence[str], kind: str) -> bytes:
    """Draw each true class's samples as fractions of them, in the report's colours."""
    # Only here: it comes with the extra of the report.
    import matplotlib
    from matplotlib.figure import Figure

    shares = confusion.counts / confusion.counts.sum(1, keepdim=True).clamp(min=1)
    side = 3 + 0.22 * min(len(names), _MOST_NAMED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    if len(names) <= _MOST_NAMED:
        words = [cut(one_line(name), 24) for name in names]
        axes.set_xticks(range(len(names)), words, rotation=90)
        axes.set_yticks(range(len(names)), words)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    figure.colorbar(image, label="fraction of the true class's samples")
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dynsparse", "text.parse_math": False}):
        figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()
