"""What is done with data before training: python -m pipelines COMMAND ..."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

from pipelines.common.text import one_line

COMMANDS = {
    "scan": ("pipelines.tools.scan", "FOLDER: find files that cannot be read, doubles and small classes"),
    "shards": ("pipelines.tools.shards", "write | index: make tar shards of a folder of images, or index shards"),
    "sample_images": ("pipelines.tools.sample_images", "FOLDER: write crops of real photographs to try training on"),
}
"""Each is a module with `main(arguments)`, which returns the exit code. Only the one asked for is imported."""

USAGE = "\n".join(
    [
        "usage: python -m pipelines COMMAND ...",
        "",
        *(f"  {name:13} {text}" for name, (_, text) in COMMANDS.items()),
        "",
        "python -m pipelines COMMAND --help says more.",
    ]
)


def main(arguments: list[str]) -> int:
    """Return the exit code: 0 done, 2 bad input."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: unknown command '{one_line(name)}'; see python -m pipelines --help", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Commands tidy up then, too.
    code: int = import_module(COMMANDS[name][0]).main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
