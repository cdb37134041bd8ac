"""Small images of one size, held in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipelines
from pipelines.base import Request, TrainPipeline
from pipelines.common.errors import UserError
from pipelines.datasets import small_images
from pipelines.datasets.small_images import SmallImagesSettings
from pipelines.order import SampleOrder, Share
from tests.pipelines.pictures import CLASSES, damage, picture, put
from tests.pipelines.streams import (
    FOR_ARRAYS,
    SEED,
    assert_known_beforehand,
    assert_workers_and_resume_change_nothing,
    request,
    whole,
)

SIZE, PADDING = 12, 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of three classes; a grey one and a palette among them."""
    for part, count in (("train", 48), ("test", 16)):
        for number in range(count):
            file = tmp_path / part / CLASSES[number % 3] / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            mode = {3: "L", 4: "P"}.get(number, "RGB")
            picture(SIZE, SIZE, 100 * len(part) + number).convert(mode).save(file)
    return tmp_path


def settings(folder: Path, **options: Any) -> SmallImagesSettings:
    padding = {"padding": PADDING} if options.get("augment", True) else {}
    given = {"name": "small_images", "path": str(folder), "image_size": SIZE, **padding, "threads": 1}
    return SmallImagesSettings.model_validate({**given, **options}).resolved()


def files_of(folder: Path, part: str) -> list[Path]:
    """Return the files in the order of their numbers: by class, then by name."""
    return [file for name in CLASSES for file in sorted((folder / part / name).iterdir())]


def pixels(files: list[Path]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def normalised(images: np.ndarray[Any, Any], train: np.ndarray[Any, Any]) -> torch.Tensor:
    """Normalise by the mean and standard deviation of each channel over the training images."""
    scaled = (images - train.mean((0, 1, 2))) / train.std((0, 1, 2))
    return torch.from_numpy(scaled).float().permute(0, 3, 1, 2)


@pytest.mark.parametrize("loader", FOR_ARRAYS)
def test_evaluation_sees_the_files_as_they_are(folder: Path, loader: str) -> None:
    data = pipelines.build(settings(folder, loader=loader), request())
    images, labels = whole(data.test)
    files = files_of(folder, "test")
    assert torch.allclose(images, normalised(pixels(files), pixels(files_of(folder, "train"))), atol=1e-5)
    assert [CLASSES[label] for label in labels] == [file.parent.name for file in files]
    assert data.class_names == tuple(CLASSES)


@pytest.mark.parametrize("loader", FOR_ARRAYS)
def test_crops_and_mirroring_are_those_of_the_random_numbers(folder: Path, loader: str) -> None:
    train = pixels(files_of(folder, "train"))
    order = SampleOrder(SEED, len(train), 24)
    for batch, ((images, _),) in enumerate(pipelines.build(settings(folder, loader=loader), request()).train.epoch()):
        expected = []
        for sample, (y, x, flip) in zip(order.batch(0, batch), order.randoms(0, batch, 0, Share(), 3), strict=True):
            padded = np.pad(train[sample], ((PADDING,) * 2, (PADDING,) * 2, (0, 0)), mode="reflect")
            top, left = int(y * (2 * PADDING + 1)), int(x * (2 * PADDING + 1))
            crop = padded[top : top + SIZE, left : left + SIZE]
            expected.append(crop[:, ::-1] if flip < 0.5 else crop)
        assert torch.allclose(images, normalised(np.stack(expected), train), atol=1e-5)


@pytest.mark.parametrize(("loader", "augment"), [("dali", True), ("torch", False)])
def test_workers_and_resume_change_nothing(folder: Path, loader: str, augment: bool) -> None:
    def build(asked: Request) -> TrainPipeline:
        given = settings(folder, loader=loader, augment=augment, validation_samples=6)
        return pipelines.build(given, asked).train

    assert_workers_and_resume_change_nothing(build)


def test_the_order_is_known_before_an_image_is_read(folder: Path) -> None:
    assert_known_beforehand(settings(folder), 48)
    for file in files_of(folder, "train"):
        file.write_bytes(b"")
    pipelines.position_of(settings(folder), request())


def test_classes_are_counted(folder: Path) -> None:
    assert settings(folder).classes == 3
    with pytest.raises(UserError, match=r"data\.number_of_classes is 4, .* has 3 class folders"):
        pipelines.check(settings(folder, number_of_classes=4))


@pytest.mark.parametrize("loader", FOR_ARRAYS)
@pytest.mark.parametrize("kind", ["truncated", "junk", "empty", "absent"])
def test_a_bad_file_is_named(folder: Path, kind: str, loader: str) -> None:
    damage(files_of(folder, "train")[7], kind)
    with pytest.raises(UserError) as error:
        pipelines.build(settings(folder, loader=loader), request())
    (line,) = error.value.lines
    assert line.startswith("train/ape/21.png ")
    assert line.endswith("; mend it, or remove it")


@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_what_is_no_file_of_ordinary_size_is_named(folder: Path, kind: str) -> None:
    put(files_of(folder, "test")[2], kind)
    with pytest.raises(UserError, match=r"^test/ape/06\.png .*; mend it, or remove it$"):
        pipelines.build(settings(folder), request())


def test_an_image_of_another_size_is_refused(folder: Path) -> None:
    picture(SIZE, SIZE + 1, 5).save(files_of(folder, "train")[30])
    with pytest.raises(UserError, match=r"^train/bee/43\.png is 12x13, not 12x12; set data\.image_size"):
        pipelines.build(settings(folder), request())


@pytest.mark.parametrize("padding", [None, 1, 4])
def test_more_than_memory_should_hold(folder: Path, monkeypatch: pytest.MonkeyPatch, padding: int | None) -> None:
    """All parts count, and the padded images of training beside them."""
    train, test = (len(files_of(folder, part)) for part in ("train", "test"))
    every = train + test
    padded = 0 if padding is None else train * (SIZE + 2 * padding) ** 2
    needed = 3 * (every * SIZE * SIZE + padded)
    asked = settings(folder, augment=False) if padding is None else settings(folder, padding=padding)
    monkeypatch.setattr(small_images, "MOST_MEMORY", needed)
    pipelines.build(asked, request()).close()
    monkeypatch.setattr(small_images, "MOST_MEMORY", needed - 1)
    with pytest.raises(UserError, match=rf"{every} images of 12x12 take 0 GiB in memory; use data\.name: imagenet"):
        pipelines.build(asked, request())


def test_the_normalisation_is_the_same_however_the_images_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
    whole = small_images.normalisation_of(images)
    assert whole.mean == pytest.approx(images.mean((0, 1, 2)))
    assert whole.std == pytest.approx(images.std((0, 1, 2)))
    monkeypatch.setattr(small_images, "AT_ONCE", 100)
    assert small_images.normalisation_of(images) == whole


def test_images_of_one_colour_are_not_divided_by_nothing(folder: Path) -> None:
    for file in files_of(folder, "train"):
        Image.new("RGB", (SIZE, SIZE), (10, 20, 30)).save(file)
    ((images, _),) = next(pipelines.build(settings(folder), request()).train.epoch())
    assert torch.equal(images, torch.zeros_like(images))


@pytest.mark.parametrize("change", [lambda file: file.rename(file.with_name("a.png")), Path.unlink])
def test_a_resume_with_other_files_is_refused(folder: Path, change: Callable[[Path], object]) -> None:
    state = pipelines.build(settings(folder), request()).train.state_dict()
    change(files_of(folder, "train")[0])
    with pytest.raises(UserError, match="other"):
        pipelines.build(settings(folder), request()).train.load_state_dict(state)
