"""The pages that --help, --help-paper and --version of `train` print."""

from __future__ import annotations

import argparse
import platform
import textwrap
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import torch

from dynsparse import __version__
from dynsparse.cli.paper.flags import add_flags
from dynsparse.config import schema
from dynsparse.config.schema import RunConfig
from dynsparse.hints import models_of

ABOUT = "Train a network that is sparse from its first step to its last."
EXAMPLES = (
    ("{program} --config configs/digits_dsr.yaml", "one worker"),
    ("torchrun --nproc-per-node 4 {module} --config configs/digits_dsr.yaml", "four"),
    ("launch/local.sh --workers 4 -- --config configs/digits_dsr.yaml", "four, started again after faults"),
    ("{program} --config configs/digits_dsr.yaml train.epochs=3 name=short", "change what the file says"),
    ("{program} --config configs/digits_dsr.yaml --dry-run", "show keys and layers"),
    ("{program} --config configs/digits_dsr.yaml --resume auto", "resume where it was stopped"),
    ("{program} --evaluate runs/digits_dsr", "accuracy on the test data"),
)

EXIT_CODES = "exit codes: 0 done, 2 bad input, 75 stopped on request (resume with --resume auto), else a fault"

PAPER = """
The flags of the paper's code. Without --config they say the whole run; with it, those given change it. More in
docs/from-the-paper-code.md.
""".strip()
PAPER_EXAMPLES = (
    ("{program} --model mnist_mlp --rewire --threshold-prune --epochs 10", ""),
    ("{program} --model mnist_mlp --rewire --dry-run", "the config that they make"),
)


def description(program: str) -> str:
    """Return examples, and the names that a config can choose from."""
    choices = [("methods", "method"), ("models", "model"), ("data sets", "data")]
    names = (f"{title} ({key}.name):\n" + "\n".join(_names(key)) for title, key in choices)
    return "\n\n".join([ABOUT, _examples(EXAMPLES, program), *names])


def _examples(rows: Sequence[tuple[str, str]], program: str) -> str:
    """Return the examples as two columns, for a user who has called `program`."""
    is_script = program.endswith(".py")
    names = {"program": f"python {program}" if is_script else program}
    names["module"] = program if is_script else f"-m {program}"
    lines = [(command.format_map(names), about) for command, about in rows]
    width = max(len(command) for command, _ in lines)
    return "\n".join(["examples:", *(f"  {command.ljust(width)}   {about}".rstrip() for command, about in lines)])


def _names(section: str) -> Iterator[str]:
    """Yield a line for each choice: its name, and the beginning of what its settings say."""
    for name, settings in models_of(RunConfig.model_fields[section].annotation).items():
        about = " ".join((settings.__doc__ or "").split("\n\n")[0].split()).split(";")[0].rstrip(".")
        yield f"  {name:20} {textwrap.shorten(about, 96, placeholder=' ...')}"


def add_schema_option(parser: argparse._ActionsContainer) -> None:
    """Add --print-schema, which prints, and ends."""
    parser.add_argument(
        "--print-schema",
        action=_Printing,
        text=lambda: schema.json_schema().rstrip("\n"),
        help="print the config's JSON Schema, and end",
    )


def add_help_options(parser: argparse.ArgumentParser, program: str) -> None:
    """Add --help-paper and --version, which print, and end."""
    parser.add_argument(
        "--help-paper",
        action=_Printing,
        text=lambda: paper_page(program),
        help="the flags of the paper's code, and end",
    )
    parser.add_argument(
        "--version", action=_Printing, text=versions, help="of this program and what it runs on, and end"
    )


def paper_page(program: str) -> str:
    """Return a page of all flags of the paper's code."""
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [--config FILE] [FLAGS ...] [section.key=value ...]",
        description=f"{PAPER}\n\n{_examples(PAPER_EXAMPLES, program)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    add_flags(parser, shown=True)
    parser.add_argument(
        "--resume",
        metavar="auto|CKPT",
        help="resume from the newest checkpoint, or from this one; with --prune, --copy-mask-from or a second "
        "--resume auto: take weights from it",
    )
    return parser.format_help().rstrip()


def versions() -> str:
    """Return the versions of all that decides what a run computes."""
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
