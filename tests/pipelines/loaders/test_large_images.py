"""Images too large to wait in a batch: the same pixels, whoever makes the view, in bounded memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import pipelines
from dynsparse.config.loading import load
from pipelines.loaders import dali_images, dali_large
from tests.pipelines.pictures import numbered_folder, picture, settings
from tests.pipelines.streams import endless, request, whole

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of many shapes: wide, high, and one to be turned by EXIF."""
    root = numbered_folder(tmp_path / "images", train=48, val=20)
    for part in ("train", "val"):
        for number, file in enumerate(sorted((root / part).rglob("*.png"))):
            exif = Image.Exif()
            exif[0x0112] = 1 + number % 8
            file.unlink()
            picture(17 + 29 * (number % 5), 23 + 31 * (number % 3), number).save(file.with_suffix(".jpg"), exif=exif)
    return root


@pytest.mark.parametrize("sizes", [(32, 40), (32, 38), (33, 38), (32, 32)])
@pytest.mark.parametrize("augment", [True, False])
def test_views_made_beforehand_are_those_of_torch(
    folder: Path, augment: bool, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal up to the rounding of a normalised value, with odd numbers of free pixels too."""
    options = {"augment": augment, "image_size": sizes[0], "evaluation_resize": sizes[1]}

    def batches(loader: str) -> torch.Tensor:
        data = pipelines.build(settings(folder, loader=loader, **options), request())
        steps = endless(data.train)
        return torch.cat([whole(data.test)[0], *(next(steps)[0] for _ in range(4))])

    made, make = [], dali_large.given
    monkeypatch.setattr(dali_large, "given", lambda *asked: made.append(asked) or make(*asked))
    expected, by_dali = batches("torch"), batches("dali")
    assert not made
    monkeypatch.setattr(dali_images, "LARGE_PIXELS", 0)
    assert float((batches("dali") - expected).abs().max()) < 1e-5
    every = len(made)
    assert every >= len(expected)
    made.clear()
    monkeypatch.setattr(dali_images, "LARGE_PIXELS", 70 * 50)
    mixed = batches("dali")
    assert 0 < len(made) < every, "some are large, and some are not"
    assert float(torch.minimum((mixed - expected).abs(), (mixed - by_dali).abs()).max()) < 1e-5


@pytest.mark.parametrize(
    ("size", "val", "most"),
    [
        pytest.param((6_000, 2_900), 2, 2_000_000_000, marks=pytest.mark.slow),
        pytest.param((16_000, 3_700), 16, 4_000_000_000, marks=pytest.mark.slow),  # A second to decode each.
        pytest.param((1, 900), 16, 4_000_000_000, marks=pytest.mark.slow),
        pytest.param((900, 1), 16, 4_000_000_000, marks=pytest.mark.slow),
    ],
)
def test_a_batch_of_tiny_files_with_many_pixels_takes_little_memory(
    size: tuple[int, int], val: int, most: int, tmp_path: Path
) -> None:
    """A batch of sixteen, and some that are read ahead; each takes 52 or 180 MB, or as much when it is resized."""
    folder = tmp_path / "images"
    for part, count in (("train", 16), ("val", val)):
        for number in range(count):
            file = folder / part / f"class_{number % 2}" / f"{number}.webp"
            file.parent.mkdir(parents=True, exist_ok=True)
            if number == 0:
                Image.new("RGB", size, (9, 99, 200)).save(file, lossless=True)
                first = file
            else:
                file.hardlink_to(first)
    config = load(ROOT / "configs/sample_images_resnet.yaml")
    command = [sys.executable, ROOT / "dist_train.py", "--config", ROOT / "configs/sample_images_resnet.yaml"]
    command += [f"data.path={folder}", "data.number_of_classes=2", f"runs={tmp_path / 'runs'}", "data.threads=2"]
    command += ["model={name: small_cnn}", "method={name: static}", "train.epochs=1", "train.global_batch_size=16"]
    command += ["train.lr.warmup_epochs=0"]
    assert config.data.resize == 54  # type: ignore[union-attr]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=300)
    assert done.returncode == 0, done.stderr
