"""The program: `dynsparse VERB ...`, and `python -m dynsparse VERB ...`.

Light to import: neither torch nor a verb that is not asked for.
"""

from __future__ import annotations

import logging
import signal
import sys
from importlib import import_module
from typing import NoReturn

from dynsparse import torchrun
from dynsparse.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, UserError
from pipelines.common import streams
from pipelines.common.text import nearest, one_line

VERBS = {
    "train": ("dynsparse.cli.train", "--config FILE: train a sparse network, or resume, evaluate, check"),
    "report": ("dynsparse.tools.report", "RUN [RUN...]: one HTML page that shows runs side by side"),
    "inspect": ("dynsparse.tools.inspection", "CKPT: check a checkpoint, and print its table of layers"),
    "export": ("dynsparse.tools.export", "CKPT --format torch|safetensors|onnx|csr: take the network away"),
    "experiments": (
        "dynsparse.cli.experiments.command",
        "LIST [N ...]: run jobs of a list of experiments in turn",
    ),
    "scan": ("pipelines.tools.scan", "FOLDER: find files that cannot be read, doubles and small classes"),
    "shards": ("pipelines.tools.shards", "write | index: make tar shards of a folder of images, or index shards"),
    "sample_images": ("pipelines.tools.sample_images", "FOLDER: write crops of real photographs to try training on"),
}
"""Each is a module with `main(arguments)`, which returns the exit code, or None for 0."""

USAGE = "\n".join(
    [
        "usage: python -m dynsparse COMMAND ...",
        "",
        *(f"  {name:13} {text}" for name, (_, text) in VERBS.items()),
        "",
        "python -m dynsparse COMMAND --help says more. The program `dynsparse` is the same.",
    ]
)


def program() -> NoReturn:
    """Run the process's command line, and exit."""
    streams.make_safe()  # Before anything opens a file.
    if sys.argv[1:2] == ["train"]:
        train(sys.argv[2:], "dynsparse train")
    streams.log_in_lines(logging.WARNING)
    sys.exit(run(sys.argv[1:]))


def train(words: list[str], name: str) -> NoReturn:
    """Train as the program `name`, and end the process. Streams are safe already."""
    if (code := torchrun.over()) is not None:
        sys.exit(code)  # An earlier attempt of this launch has said why. Before torch, which takes seconds to import.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # No traceback if it comes while torch is imported.
    from dynsparse.cli.leaving import leave  # Only now, for it imports torch.
    from dynsparse.cli.train import main

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    leave(main(words, name))


def run(arguments: list[str]) -> int:
    """Run a verb, and return the exit code: 0 done, 2 bad input or output that could not be written."""
    try:
        code = main(arguments)
    except SystemExit as ended:  # argparse's: 0 after --help, 2 for what it cannot read.
        code = int(ended.code or EXIT_DONE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if code == EXIT_DONE and (problem := streams.lost_output()):
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return code


def main(arguments: list[str]) -> int:
    """Run a verb, and return the exit code: 0 done, 2 bad input."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    name, *rest = arguments
    try:
        if name not in VERBS:
            raise UserError(f"unknown command '{name}'{nearest(name, VERBS)}; see python -m dynsparse --help")
        if VERBS[name][0].startswith("pipelines."):
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # They tidy up then, too.
        return int(import_module(VERBS[name][0]).main(rest) or EXIT_DONE)
    except UserError as error:
        for line in error.lines:
            print(f"error: {one_line(line)}", file=sys.stderr)
        return EXIT_BAD_INPUT
