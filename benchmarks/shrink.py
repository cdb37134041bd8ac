"""A folder of small copies of photographs, for tables of minutes a run.

    python -m benchmarks.shrink --images data/imagenette --to data/imagenette-small --side 80

Makes PART/CLASS/NAME.jpg of each image, and leaves those that are there.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.script import ScriptParser
from benchmarks.parts.photographs import shrunk
from pipelines.common.command_line import at_least_1
from pipelines.sources.walking import is_image


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--images", metavar="DIR", type=Path, required=True, help="PART/CLASS/images")
    parser.add_argument("--to", metavar="DIR", type=Path, required=True)
    parser.add_argument("--side", metavar="PIXELS", type=at_least_1, default=80, help="shorter side (%(default)s)")
    asked = parser.parse_args()
    images = [path for path in sorted(asked.images.glob("*/*/*")) if is_image(path.name)]
    if not images:
        parser.error(f"--images is {asked.images}; it has no PART/CLASS/images")
    for path in images:
        to = (asked.to / path.relative_to(asked.images)).with_suffix(".jpg")
        if not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            shrunk(path, asked.side).save(to, quality=95)
    print(f"{len(images):,} images in {asked.to}")


if __name__ == "__main__":
    main()
