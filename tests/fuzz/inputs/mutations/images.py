"""Images whose bytes are changed: at any place, and in the headers of each format."""

from __future__ import annotations

from random import Random

from tests.fuzz.inputs.mutations import bitmaps, jpeg, png, tiff, webp
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.pictures import KINDS, drawn
from tests.fuzz.inputs.place import Place
from tests.fuzz.mutations.damage import DAMAGES, Damage
from tests.fuzz.mutations.registry import place as index

EDITS: dict[str, dict[str, Damage]] = {
    "jpg": jpeg.EDITS,
    "png": png.EDITS,
    "webp": webp.EDITS,
    "bmp": bitmaps.EDITS,
    "tif": tiff.EDITS,
}
"""Changes that need to know the format, by format."""
MOST = 8
"""Images that are changed at once: of more than ten the log names only some."""


def splice(rng: Random, content: bytes) -> bytes:
    """The head of one image and the tail of another, of any format."""
    other = drawn(rng, rng.choice(list(KINDS)))
    return content[: index(rng, len(content))] + other[index(rng, len(other)) :]


def head_of_another(rng: Random, content: bytes) -> bytes:
    other, cut = drawn(rng, rng.choice(list(KINDS))), rng.choice((2, 4, 8, 12, 16, 30, 60))
    return other[:cut] + content[cut:]


def nothing(rng: Random, content: bytes) -> bytes:
    return content


def _chosen(rng: Random, target: Place) -> list[str]:
    count = rng.choice((1, 1, 2, MOST, MOST))
    return rng.sample(target.subject.images, count)


def _on_format(name: str, suffix: str, damage: Damage) -> None:
    """Register a damage to images of one format, in files whose names may say another."""

    @mutation("image", name)
    def act(rng: Random, target: Place) -> str:
        names = _chosen(rng, target)
        for image in names:
            target.put(image, damage(rng, drawn(rng, suffix)))
        return f"{name} in {', '.join(names)}"


def _on_any(damage: Damage) -> None:
    @mutation("image", damage.__name__)
    def act(rng: Random, target: Place) -> str:
        names = _chosen(rng, target)
        for image in names:
            content = drawn(rng, rng.choice(list(KINDS)))
            for _ in range(rng.choice((1, 1, 1, 2))):
                content = damage(rng, content)
            target.put(image, content)
        return f"{damage.__name__} in {', '.join(names)}"


for _damage in (*DAMAGES, splice, head_of_another, nothing):
    _on_any(_damage)
for _suffix, _edits in EDITS.items():
    for _name, _edit in _edits.items():
        _on_format(f"{_suffix} {_name}", _suffix, _edit)
