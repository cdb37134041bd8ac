"""The program: `dynsparse VERB ...`, and `python -m dynsparse VERB ...`.

Light to import: neither torch nor a verb that is not asked for.
"""

from __future__ import annotations

import logging
import signal
import sys
from importlib.util import find_spec
from typing import NoReturn

from dynsparse import __version__, torchrun
from pipelines.__main__ import PROGRAM as DATA
from pipelines.common import streams
from pipelines.common.errors import EXIT_BAD_INPUT
from pipelines.common.extras import install_command
from pipelines.common.programs import Program

PROGRAM = Program(
    "dynsparse",
    {
        "train": ("dynsparse.cli.train", "--config FILE: train a sparse network, or resume, evaluate, check"),
        "report": ("dynsparse.tools.report", "RUN [RUN...]: one HTML page that shows runs side by side"),
        "inspect": ("dynsparse.tools.inspection", "CKPT: check a checkpoint, and print its table of layers"),
        "predict": ("dynsparse.tools.prediction", "RUN IMAGE...: the most probable classes of images"),
        "export": ("dynsparse.tools.export", "CKPT --format torch|safetensors|onnx|csr|compact: take the network away"),
        "speed-up": ("dynsparse.tools.speeding", "CKPT --batch N [N ...]: the fastest way to run it on this machine"),
        "experiments": (
            "dynsparse.cli.experiments.command",
            "LIST [N ...]: run jobs of a list of experiments in turn",
        ),
        **DATA.verbs,
    },
    "`python -m dynsparse` is the same. --version prints the version.",
    f"dynsparse {__version__}",
)

TRAIN = ("train", ("PIL", "sklearn", "tensorboard", "torchvision", "tqdm", "yaml"))
EXTRAS = {
    **dict.fromkeys(("train", "experiments", "predict", *DATA.verbs), TRAIN),
    "report": ("report", ("jinja2", "matplotlib", "yaml")),
    "inspect": ("export", ("yaml",)),
    "export": ("export", ("yaml",)),
    "speed-up": ("export", ("yaml",)),
}
"""The extra that each verb needs, and packages that come with it."""


def program() -> NoReturn:
    """Run the process's command line, and exit."""
    streams.make_safe()  # Before anything opens a file.
    require_extra(sys.argv[1] if sys.argv[1:] else "")
    if sys.argv[1:2] == ["train"]:
        train(sys.argv[2:], "dynsparse train")
    streams.log_in_lines(logging.WARNING)
    sys.exit(main(sys.argv[1:]))


def require_extra(verb: str) -> None:
    """End the process in one line, with exit code 2, if packages that the verb needs are not installed."""
    extra, packages = EXTRAS.get(verb, ("", ()))
    if missing := [package for package in packages if find_spec(package) is None]:
        print(
            f"error: {verb}: {', '.join(missing)} not installed; a plain install has the library alone: "
            f"{install_command(extra)}",
            file=sys.stderr,
        )
        sys.exit(EXIT_BAD_INPUT)


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


def main(arguments: list[str]) -> int:
    """Run a verb, and return the exit code: 0 done, 2 bad input or output that could not be written."""
    if arguments and arguments[0] in DATA.verbs:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # They tidy up then, too.
    return PROGRAM.run(arguments)
