"""Verdicts and pixels of good and damaged files: by the scan, by DALI on the CPU, and by its decoder on a GPU."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

import pipelines
from benchmarks.parts.gpu.bench import Bench, Found
from pipelines.__main__ import PROGRAM
from pipelines.base import Request
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.decoding import Decoding
from pipelines.images.reference import decoded, rgb
from pipelines.order import Share
from tests.pipelines.images.hostile import encoded, mutated, turned
from tests.pipelines.pictures import picture

SIZE = (500, 375)
MOST_PIXELS = 1_000_000
"""Pixels of the largest image: a changed byte may declare many more."""
MOST_LEVELS = 1.0
"""Mean absolute difference of two decoders, in grey levels of 255, that is rounding."""
REFUSED = 255.0
"""The difference where a file gives no pixels, or another number of them."""
NO_DALI, NO_GPU = "left out: nvidia.dali is not installed", "left out: there is no GPU"
Places = Mapping[str, tuple[int | None, Decoding]]
"""Index of a GPU or None, and the place where DALI decodes."""


def good() -> dict[str, bytes]:
    """Return files that are whole, of the kinds that decoders often differ in."""
    image = picture(*SIZE, seed=1)
    grey16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return {
        "JPEG": encoded(image, quality=90),
        "JPEG, colours not halved": encoded(image, quality=90, subsampling=0),
        "turned JPEG": encoded(image, quality=90, exif=turned()),
        "progressive JPEG": encoded(image, quality=90, progressive=True),
        "grey JPEG": encoded(image.convert("L"), quality=90),
        "CMYK JPEG": encoded(image.convert("CMYK"), quality=90),
        "PNG": encoded(image, "PNG"),
        "16-bit PNG": encoded(grey16, "PNG"),
    }


def bad() -> dict[str, bytes]:
    """Return files that are not."""
    whole = good()
    changed = bytearray(whole["PNG"])
    changed[len(changed) // 2] ^= 1
    return {
        **{f"{name}, half": content[: len(content) // 2] for name, content in whole.items()},
        "JPEG without its end mark": whole["JPEG"][:-2],
        "PNG of a changed bit": bytes(changed),
        "junk": bytes(range(256)) * 4,
        "an empty file": b"",
    }


def verdicts(bench: Bench, found: Found, places: Places, folder: Path) -> None:
    """Compare what is refused, and the pixels of the rest. `places`: none where DALI is not installed."""
    count = 10 if bench.tiny else 100
    odd = {f"mutation {number}": mutated(random.Random(number)) for number in range(count)}
    files = {**good(), **bad(), **odd}
    names = _written(folder, files)
    refused = {names[path] for path in _scanned(folder)}
    known = refused - odd.keys()
    title = "the scan refuses the damaged files that are known, and no good one"
    found.check(title, known == bad().keys(), _said(known, bad()))
    found.figures["verdicts"] = {"files": len(files), "scan": sorted(refused)}
    for place, (device, decoding) in places.items():
        theirs = {names[path] for path in _trained_on(folder, len(files), device, decoding)}
        found.figures["verdicts"][place] = sorted(theirs)
        title = f"decoded by: {place}: refuses of {len(files)} files the {len(refused)} that the scan refuses"
        found.check(title, theirs == refused, _said(theirs, refused))
        _pixels(found, place, device, decoding)
    if not places:
        found.say("verdicts and pixels by DALI, on the CPU and on a GPU", NO_DALI)
    elif not bench.on_gpu:
        found.say("verdicts and pixels by DALI on a GPU", NO_GPU)


def _said(ours: set[str], theirs: Mapping[str, bytes] | set[str]) -> str:
    other = sorted(ours ^ set(theirs))
    return f"all but {', '.join(other)}" if other else "yes"


def _written(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write training files of one class, and good ones beside them. Returns their titles by path."""
    names = {}
    for part, label in (("train", "ape"), ("train", "bee"), ("val", "ape"), ("val", "bee")):
        (folder / part / label).mkdir(parents=True)
        (folder / part / label / "good.jpg").write_bytes(good()["JPEG"])
    for number, (title, content) in enumerate(files.items()):
        path = f"train/ape/{number:04}.jpg"
        names[path] = title
        (folder / path).write_bytes(content)
    return names


def _scanned(folder: Path) -> list[str]:
    """Return the paths that the scan refuses."""
    with redirect_stdout(io.StringIO()):
        assert PROGRAM.run(["scan", str(folder), "--workers=1", f"--most-pixels={MOST_PIXELS}"]) == 0
    return list(json.loads((folder / "scan.json").read_text())["bad"])


def _trained_on(folder: Path, count: int, device: int | None, decoding: Decoding) -> list[str]:
    """Return the paths that training skips, in an epoch of one batch that has all files."""
    config = ImagenetSettings.model_validate(
        {
            "name": "imagenet", "path": str(folder), "loader": "dali", "threads": 4, "number_of_classes": 2,
            "image_size": 64, "augment": False, "on_bad_file": "skip", "most_pixels": MOST_PIXELS,
            "decode": decoding.place if device is not None else None, "largest_image": list(decoding.largest),
        }
    )  # fmt: skip
    paths = sorted(path.relative_to(folder).as_posix() for path in (folder / "train").glob("*/*"))
    data = pipelines.build(config, Request(0, len(paths), Share(), 1, device_id=device))
    try:
        assert len(list(data.train.epoch())) == 1 and len(paths) == count + 2
        return [paths[sample] for sample in data.train.bad_samples]
    finally:
        data.close()


def _pixels(found: Found, place: str, device: int | None, decoding: Decoding) -> None:
    """Compare the pixels of good files, as the product hands them to DALI, with those of the reference."""
    from pipelines.loaders.dali_images import given
    from pipelines.loaders.dali_probe import Probe  # Only here: DALI may not be installed.

    probe, means = Probe(device, decoding), {}
    for title, content in good().items():
        bytes_ = np.frombuffer(content, dtype=np.uint8)
        ours, reference = probe.pixels(given(bytes_, MOST_PIXELS)), np.asarray(rgb(decoded(bytes_, MOST_PIXELS)))
        same = ours is not None and ours.shape == reference.shape
        means[title] = float(np.abs(np.asarray(ours, dtype=int) - reference).mean()) if same else REFUSED
    worst = max(means, key=lambda title: means[title])
    found.check(
        f"decoded by: {place}: mean difference of a pixel from Pillow's, of 255, in {len(means)} kinds of files: "
        f"at most {MOST_LEVELS:g}",
        means[worst] <= MOST_LEVELS,
        f"{means[worst]:.3f} at most, {worst}",
    )
    found.figures.setdefault("mean_differences_of_odd_files", {})[place] = means
