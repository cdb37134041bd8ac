"""The options of `train`, and the words of its command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from dynsparse.cli import help_pages
from dynsparse.cli.paper.flags import add_flags
from pipelines.common.command_line import Parser, at_least_1
from pipelines.common.paths import argument

MOST_WORKERS = 4096
"""Workers of which one can be rehearsed."""


def parse(words: Sequence[str], program: str) -> argparse.Namespace:
    """Parse a command line. Raises UserError for what is none, SystemExit after a page of help.

    `program` is how the user has called it, such as "dynsparse train".
    """
    return _parser(program).parse_intermixed_args(list(words))


def _one_of_many(text: str) -> tuple[int, int]:
    """Return rank and number of workers, as a type for argparse."""
    rank, _, world_size = text.rpartition("/")
    numbers = (rank or "0", world_size)
    if not all(re.fullmatch(r"[0-9]{1,4}", number) for number in numbers) or not 0 <= int(rank or 0) < int(world_size):
        raise argparse.ArgumentTypeError(f"is '{text}'; it must be WORLD or RANK/WORLD, such as 1024 or 3/1024")
    if not 2 <= int(world_size) <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"is '{text}'; WORLD must be 2 to {MOST_WORKERS:,}")
    return int(numbers[0]), int(numbers[1])


def _parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        allow_abbrev=False,  # Abbreviations make --prune ambiguous, and change meaning with every new option.
        usage="%(prog)s --config FILE [OPTIONS] [section.key=value ...]",
        description=help_pages.description(program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=help_pages.EXIT_CODES,
    )
    parser.add_argument("--config", metavar="FILE", type=argument, help="YAML file; those in configs/ are examples")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the config, such as seed=3")
    parser.add_argument(
        "--resume",
        metavar="auto|CKPT",
        action="append",
        help="resume from the run's newest checkpoint, or from this one; CKPT may be a run's folder, or FOLDER_initial;"
        " with --prune, --copy-mask-from or a second --resume auto: take weights from it",
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    one.add_argument(
        "--evaluate", metavar="CKPT", type=argument, help="evaluate a checkpoint, or a run's best, and end"
    )
    parser.add_argument(
        "--confusion",
        metavar="FILE",
        type=argument,
        help="with --evaluate: accuracy by class, and a confusion matrix in FILE.csv; FILE.svg or .png draws it too",
    )
    one.add_argument("--dry-run", action="store_true", help="print the resolved config and the layers, and end")
    one.add_argument(
        "--preview",
        metavar="N",
        type=at_least_1,
        help="write a picture of N training samples with their labels, and end",
    )
    one.add_argument(
        "--rehearse",
        metavar="[RANK/]WORLD",
        type=_one_of_many,
        help="go through the first steps as one of WORLD workers, alone: print what it holds, gets and sends, and end",
    )
    help_pages.add_schema_option(one)
    parser.add_argument(
        "--check", action="store_true", help="with the options of a start: say what it would refuse, and end"
    )
    help_pages.add_help_options(parser, program)
    add_flags(parser)
    parser.set_defaults(program=program)
    return parser
