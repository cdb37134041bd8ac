"""Make the folders that training reads from the archives that a data set comes in.

    python -m pipelines prepare imagenet --archives DIR --out data/imagenet

DIR holds the archives under their official names; they are left as they are. A command that was stopped, by whatever
signal, goes on where it was when it is given again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pipelines.common.command_line import Parser, at_least_1
from pipelines.common.errors import UserError
from pipelines.common.paths import path_argument
from pipelines.tools.prepare import cifar10, imagenet, mnist
from pipelines.tools.prepare.imagenet_plan import Wanted

PROGRAM = "python -m pipelines prepare"
WORKERS = 4
"""Threads. A disk is the limit, and few make it busy."""


def main(arguments: Sequence[str]) -> None:
    """Prepare a data set. Raises UserError for archives that are absent or odd, and what cannot be written."""
    asked = _parse(arguments)
    try:
        print(asked.prepare(asked))
    except OSError as error:
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        raise UserError(f"{name}{error.strerror or error}; make it readable, or room to write") from error
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=form, allow_abbrev=False)
    commands = parser.add_subparsers(dest="data_set", metavar="DATA_SET", required=True)
    photographs = _add(commands, "imagenet", "the tars of ILSVRC2012 for train and val, and the devkit")
    photographs.add_argument(
        "--classes", metavar="FILE", type=path_argument, help="take these alone: a list with a WNID a line"
    )
    photographs.add_argument(
        "--allow-fewer", action="store_true", help="accept archives that have fewer classes or images than ImageNet"
    )
    photographs.add_argument("--workers", metavar="N", type=at_least_1, default=WORKERS, help="threads (%(default)s)")
    photographs.set_defaults(prepare=_imagenet)
    _add(commands, "cifar10", "cifar-10-python.tar.gz").set_defaults(prepare=_cifar10)
    _add(commands, "mnist", "the four files, as .gz or unpacked").set_defaults(prepare=_mnist)
    return parser.parse_args(arguments)


def _add(commands: argparse._SubParsersAction[Parser], name: str, archives: str) -> Parser:
    parser = commands.add_parser(name, help=f"of {archives}", description=f"Archives: {archives}.", allow_abbrev=False)
    parser.add_argument("--archives", metavar="DIR", type=path_argument, required=True, help="folder of the archives")
    parser.add_argument(
        "--out", metavar="DIR", type=path_argument, default=f"data/{name}", help="folder to fill (%(default)s)"
    )
    return parser


def _imagenet(asked: argparse.Namespace) -> str:
    return imagenet.prepare(Wanted(asked.archives, asked.classes, asked.allow_fewer), asked.out, asked.workers)


def _cifar10(asked: argparse.Namespace) -> str:
    return cifar10.prepare(asked.archives, asked.out)


def _mnist(asked: argparse.Namespace) -> str:
    return mnist.prepare(asked.archives, asked.out)
