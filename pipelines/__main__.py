"""Commands on data before training: `python -m pipelines COMMAND ...`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from pipelines.common.programs import Program

PROGRAM = Program(
    "python -m pipelines",
    {
        "prepare": ("pipelines.tools.prepare.command", "imagenet | cifar10 | mnist: make folders of their archives"),
        "scan": ("pipelines.tools.scan", "FOLDER: find files that cannot be read, doubles and small classes"),
        "shards": ("pipelines.tools.shards", "write | index: make tar shards of a folder of images, or index shards"),
        "sample_images": ("pipelines.tools.sample_images", "FOLDER: write crops of photographs to try training on"),
    },
)


def main(words: Sequence[str]) -> None:
    """Run a command to its end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Commands tidy up then, too.
    PROGRAM.start(list(words))


if __name__ == "__main__":
    main(sys.argv[1:])
