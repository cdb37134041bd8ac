"""Options that say which network a command takes: of a run, a checkpoint, or a file of weights."""

from __future__ import annotations

import argparse
import re
from os.path import isdir, isfile
from pathlib import Path

from dynsparse.errors import UserError
from dynsparse.tools.export.network import ExportedNetwork, source_of, take_network
from dynsparse.tools.export.weights_file import take_weights
from dynsparse.training.exported import read_weights
from pipelines.common.command_line import at_least_1
from pipelines.common.paths import argument

MOST_PIXELS = 16_384
_SIZE = re.compile(r"\d{1,5}(x\d{1,5}){0,2}", re.ASCII)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the argument and its options to a parser."""
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        type=argument,
        help="a checkpoint, or a run's folder: its best, if any is yet, or its latest; with --model a file of weights",
    )
    parser.add_argument("--ema", action="store_true", help="the average of the weights (train.ema), not the weights")
    parser.add_argument(
        "--model", metavar="NAME", help="CKPT is a state_dict (torch.save, safetensors) of torchvision/..., timm/..."
    )
    parser.add_argument("--classes", metavar="N", type=at_least_1, help="outputs of NAME (1000)")
    parser.add_argument("--image-size", metavar="SIZE", type=image_shape, help="224 (default), 224x192 or 1x28x28")


def taken(parsed: argparse.Namespace) -> tuple[ExportedNetwork, Path]:
    """Return the network, and the file that it is from. Raises UserError, in a line for each fault."""
    if parsed.model is not None:
        return _of_weights(parsed)
    for option in ("classes", "image_size"):
        if getattr(parsed, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}: only with --model; a run knows its own")
    source = source_of(parsed.checkpoint)
    try:
        return take_network(source, ema=parsed.ema), source
    except UserError:
        if _holds_weights(source):
            raise UserError(
                f"{source}: holds weights without a network; name it, such as --model torchvision/resnet50"
            ) from None
        raise


def image_shape(text: str) -> tuple[int, int, int]:
    """Return channels, height and width of HEIGHT, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, as a type for argparse."""
    numbers = [int(part) for part in text.split("x")] if _SIZE.fullmatch(text) else []
    if not numbers or not all(1 <= number <= MOST_PIXELS for number in numbers):
        raise argparse.ArgumentTypeError(
            f"is '{text}'; it must be like 224, 224x192 (height, width) or 1x28x28 (channels first)"
        )
    if len(numbers) == 1:
        numbers *= 2
    channels, height, width = numbers if len(numbers) == 3 else [3, *numbers]
    return channels, height, width


def _of_weights(parsed: argparse.Namespace) -> tuple[ExportedNetwork, Path]:
    path = Path(parsed.checkpoint)
    if parsed.ema:
        raise UserError("--ema: not with --model; a file of weights has no average of them beside")
    if not parsed.checkpoint or isdir(path):
        raise UserError(f"--model: '{path}' is no file of weights; name one, or leave --model out")
    network = take_weights(path, parsed.model, classes=parsed.classes, image_shape=parsed.image_size)
    return network, path


def _holds_weights(path: Path) -> bool:
    try:
        return isfile(path) and bool(read_weights(path, nested=True))
    except UserError:
        return False
