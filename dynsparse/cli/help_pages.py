"""What --help, --help-paper and --version of dist_train.py print."""

from __future__ import annotations

import argparse
import platform
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch

from dynsparse import __version__
from dynsparse.cli.paper_flags import add_flags
from dynsparse.config.schema import RunConfig
from dynsparse.hints import models_of

EXAMPLES = """
Train a network that is sparse from its first step to its last.

examples:
  python dist_train.py --config configs/digits_dsr.yaml                             one worker
  torchrun --nproc-per-node 4 dist_train.py --config configs/digits_dsr.yaml        four
  launch/local.sh --workers 4 -- --config configs/digits_dsr.yaml                   four, started again after faults
  python dist_train.py --config configs/digits_dsr.yaml train.epochs=3 name=short   change what the file says
  python dist_train.py --config configs/digits_dsr.yaml --dry-run                   show keys and layers
  python dist_train.py --config configs/digits_dsr.yaml --resume auto               go on where it was stopped
  python dist_train.py --evaluate runs/digits_dsr                                   accuracy on the test data
""".strip()

EXIT_CODES = "exit codes: 0 done, 2 bad input, 75 stopped on request (resume with --resume auto), else a fault"

PAPER = """
The flags of the paper's code. Without --config they say the whole run; with it, those given change it. More in
docs/from-the-paper-code.md.

examples:
  python dist_train.py --model mnist_mlp --rewire --threshold-prune --epochs 10
  python dist_train.py --model mnist_mlp --rewire --dry-run                               the config that they make
""".strip()


def description() -> str:
    """Examples, and the names that a config can choose from."""
    rooms = [("methods", "method"), ("models", "model"), ("data sets", "data")]
    return "\n\n".join([EXAMPLES, *(f"{title} ({key}.name):\n" + "\n".join(_names(key)) for title, key in rooms)])


def _names(section: str) -> Iterator[str]:
    """A line for each: its name, and the beginning of what its settings say."""
    for name, settings in models_of(RunConfig.model_fields[section].annotation).items():
        about = " ".join((settings.__doc__ or "").split("\n\n")[0].split()).split(";")[0].rstrip(".")
        yield f"  {name:20} {textwrap.shorten(about, 96, placeholder=' ...')}"


def add_help_options(parser: argparse.ArgumentParser) -> None:
    """--help-paper and --version, which print, and end."""
    parser.add_argument(
        "--help-paper", action=_Printing, text=paper_page, help="the flags of the paper's code, and end"
    )
    parser.add_argument(
        "--version", action=_Printing, text=versions, help="of this program and what it runs on, and end"
    )


def paper_page() -> str:
    """All flags of the paper's code."""
    parser = argparse.ArgumentParser(
        prog="dist_train.py",
        usage="%(prog)s [--config FILE] [FLAGS ...] [section.key=value ...]",
        description=PAPER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    add_flags(parser, shown=True)
    parser.add_argument(
        "--resume",
        metavar="auto|CKPT",
        help="go on from the newest checkpoint, or from this one; with --prune, --copy-mask-from or a second "
        "--resume auto: take weights from it",
    )
    return parser.format_help().rstrip()


def versions() -> str:
    """Of all that decides what a run computes."""
    dali = [f"{one.version}" for one in metadata.distributions() if one.name.lower().startswith("nvidia-dali")]
    return "\n".join(
        [
            f"dynsparse {__version__}",
            f"torch {torch.__version__}",
            f"DALI {dali[0] if dali else 'none'}",
            f"Python {platform.python_version()}",
        ]
    )


class _Printing(argparse.Action):
    """An option that prints a text, and ends."""

    def __init__(self, *, text: Callable[[], str], **options: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **{**options, "dest": argparse.SUPPRESS})
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(self._text(), flush=True)
        parser.exit()
