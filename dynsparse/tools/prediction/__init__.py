"""python -m dynsparse predict: the classes of images, by the network of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError
from dynsparse.tools.opening import Opened, averaged, looking_up, open_checkpoint
from dynsparse.tools.prediction.images import Reader, found_in
from dynsparse.training.checkpoint import result_of
from dynsparse.training.judged import is_average
from pipelines.common.command_line import Parser, at_least_1
from pipelines.common.paths import argument
from pipelines.common.text import one_line

_AT_ONCE = 32
"""Images in a forward pass."""


def main(arguments: list[str]) -> int:
    """Print the classes of images, by the network that chose the run's best.

    Returns 2 if an image could not be read. UserError for a checkpoint of no use.
    """
    parser = Parser(
        prog="python -m dynsparse predict",
        description="Print the most probable classes of images, by the network of a run. An image is prepared as in an "
        "evaluation. Needs no data set and no GPU.",
    )
    parser.add_argument("checkpoint", metavar="RUN", type=argument, help="a run's folder: its best; or a checkpoint")
    parser.add_argument("images", metavar="IMAGE", type=argument, nargs="+", help="a file, or a folder of images")
    parser.add_argument("--top", metavar="N", type=at_least_1, default=5, help="number of classes to print (5)")
    parser.add_argument("--json", action="store_true", help="for programs: an object a line, an image each")
    asked = parser.parse_args(arguments)
    with looking_up(asked.checkpoint):
        opened = open_checkpoint(result_of(asked.checkpoint))
    if is_average(opened.saved):
        opened = averaged(opened)
    reader = Reader.of(opened)
    paths = iter([path for text in asked.images for path in found_in(Path(text))])
    names, failed = class_names(opened), 0
    while some := list(islice(paths, _AT_ONCE)):
        failed += _predict(opened.network.model, reader, some, names, top=asked.top, as_json=asked.json)
    return EXIT_BAD_INPUT if failed else EXIT_DONE


def class_names(opened: Opened) -> Sequence[str]:
    """Names of the classes of the run's data set, by output; their numbers where they have no names."""
    return opened.input.get("class_names") or [str(i) for i in range(opened.input["number_of_classes"])]


def _predict(
    model: nn.Module, reader: Reader, paths: Sequence[Path], names: Sequence[str], *, top: int, as_json: bool
) -> int:
    """Print a line for each image. Returns how many could not be read."""
    made: dict[Path, Tensor] = {}
    faults: dict[Path, str] = {}
    for path in paths:
        try:
            made[path] = reader.read(path)
        except UserError as error:
            faults[path] = str(error)
    classes = dict(zip(made, most_probable(model, list(made.values()), names, top), strict=True))
    for path in paths:
        if path in faults:
            print(f"error: {one_line(path)}: {faults[path]}", file=sys.stderr, flush=True)
        if as_json:
            found = {"error": faults[path]} if path in faults else {"classes": classes[path]}
            print(json.dumps({"image": str(path), **found}), flush=True)
        elif path in classes:
            print(_line(path, classes[path]), flush=True)
    return len(faults)


@torch.no_grad()
def most_probable(
    model: nn.Module, images: Sequence[Tensor], names: Sequence[str], top: int
) -> list[list[dict[str, Any]]]:
    """Return the most probable classes of each image, the likeliest first: name, number and probability."""
    if not images:
        return []
    probabilities = model(torch.stack(list(images))).float().softmax(1)
    values, classes = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return [
        [{"name": names[i], "class": i, "probability": value} for value, i in zip(row, numbers, strict=True)]
        for row, numbers in zip(values.tolist(), classes.tolist(), strict=True)
    ]


def _line(path: Path, classes: Sequence[dict[str, Any]]) -> str:
    named = (f"{one['name']} {100 * one['probability']:.2f} %" for one in classes)
    return f"{one_line(path)}: {', '.join(named)}"
