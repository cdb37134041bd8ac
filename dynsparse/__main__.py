"""What is done with runs and checkpoints after training: python -m dynsparse COMMAND ...

Training itself is dist_train.py's.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module

from dynsparse import streams
from dynsparse.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, UserError
from pipelines.common.text import nearest, one_line

# Each is a module with `main(arguments)`; only the one that is asked for is imported, as torch takes seconds.
COMMANDS = {
    "report": ("dynsparse.tools.report", "RUN [RUN...]: one HTML page that shows runs side by side"),
    "inspect": ("dynsparse.tools.inspection", "CKPT: check a checkpoint, and print its table of layers"),
    "export": ("dynsparse.tools.export", "CKPT --format torch|safetensors|onnx|csr: take the network away"),
}

USAGE = "\n".join(
    [
        "usage: python -m dynsparse COMMAND ...",
        "",
        *(f"  {name:8} {text}" for name, (_, text) in COMMANDS.items()),
        "",
        "python -m dynsparse COMMAND --help says more. Training is started by dist_train.py.",
    ]
)


def main(arguments: list[str]) -> int:
    """The exit code: 0 done, 2 bad input."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command '{name}'{nearest(name, COMMANDS)}; see python -m dynsparse --help")
        import_module(COMMANDS[name][0]).main(rest)
    except UserError as error:
        for line in error.lines:
            print(f"error: {one_line(line)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_DONE


def run(arguments: list[str]) -> int:
    """The same as a program: exit code 2 as well if what was printed could not be written."""
    streams.make_safe()
    streams.log_in_lines(logging.WARNING)
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


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
