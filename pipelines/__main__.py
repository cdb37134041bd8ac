"""Commands on data before training: `python -m pipelines COMMAND ...`."""

from __future__ import annotations

import signal
import sys

from pipelines.common.programs import Program

PROGRAM = Program(
    "python -m pipelines",
    {
        "scan": ("pipelines.tools.scan", "FOLDER: find files that cannot be read, doubles and small classes"),
        "shards": ("pipelines.tools.shards", "write | index: make tar shards of a folder of images, or index shards"),
        "sample_images": ("pipelines.tools.sample_images", "FOLDER: write crops of photographs to try training on"),
    },
)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Commands tidy up then, too.
    PROGRAM.start(sys.argv[1:])
