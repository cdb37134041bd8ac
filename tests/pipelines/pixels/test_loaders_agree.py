"""Operations through both loaders, from files and arrays, on any number of workers, and after a resume."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pipelines
from pipelines.base import Request, TrainPipeline
from pipelines.loaders import dali_images
from pipelines.order import Share, Uniforms
from pipelines.pixels.erasing import Erasing
from pipelines.pixels.policies import ColorJitter, Policy, RandAugment, Round, TrivialAugment
from pipelines.pixels.recipe import Pixels
from pipelines.pixels.tables import DRAWN, RANDOM, Operation
from pipelines.sources.base import Arrays, Source
from pipelines.sources.image_folder import list_images
from pipelines.views import AsItIs, Normalisation, RandomCrop, RandomResizedCrop, Recipe, View
from tests.pipelines.pictures import settings
from tests.pipelines.pixels.photographs import crops
from tests.pipelines.streams import (
    LOADERS,
    assert_workers_and_resume_change_nothing,
    endless,
    global_batches,
    request,
    training,
)

LEVELS = Normalisation((0.0,) * 3, (1.0,) * 3)
ALL = Pixels((TrivialAugment(), ColorJitter(0.4, 0.4, 0.4, 0.1)), Erasing(0.5, "random"))


class Only(Policy):
    """One operation for every sample, as RandAugment(1, 20) would do it."""

    stream = "only"
    uniforms = 1

    def __init__(self, operation: int) -> None:
        self.operation = operation

    def rounds(self, uniforms: Uniforms, height: int, width: int) -> list[Round]:  # type: ignore[override]
        magnitude = 0.2 if self.operation == Operation.HUE else RANDOM.magnitudes(height, width)[self.operation, 20]
        signs = np.where(uniforms[:, 0] < 0.5, -1, 1) if self.operation <= Operation.SHARPNESS else 1
        return [(np.full(len(uniforms), self.operation), np.full(len(uniforms), magnitude) * signs)]


@cache
def arrays() -> Arrays:
    return Arrays(crops(48, 40, 52), np.arange(48, dtype=np.int64) % 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return the same pictures in lossless files."""
    root = tmp_path_factory.mktemp("pixels")
    for i, image in enumerate(crops(48, 40, 52)):
        folder = root / "train" / f"class_{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return list_images(root, "train", [f"class_{i}" for i in range(3)])


def batches(recipe: Recipe, loader: str, steps: int = 1, **options: object) -> Tensor:
    pipeline = training(recipe, request(), loader, **options)
    found = endless(pipeline)
    images = torch.cat([next(found)[0] for _ in range(steps)])
    pipeline.close()
    return images


@pytest.mark.parametrize("view", [AsItIs(), RandomCrop((32, 40), (8, 12))], ids=["whole", "crop"])
def test_both_loaders_make_the_same_pictures(files: Source, view: View) -> None:
    """Bit for bit, as the views have the same bits: nothing is resized."""
    for source in (arrays(), files):
        recipe = Recipe(source, view, Normalisation((120.0, 110.0, 99.0), (60.0, 61.0, 62.0)), ALL)
        by_dali, by_torch = (batches(recipe, loader) for loader in LOADERS)
        assert torch.equal(by_dali, by_torch)
        assert float((by_dali - batches(replace(recipe, pixels=Pixels()), "torch")).abs().mean()) > 0.2


# Resized views differ by a grey level, as rounding does (test_views.py). An operation multiplies that by its slope, and
# cutting to whole levels adds one. A step between two levels may turn a small difference into a large one: so for each
# operation the largest difference, and the share of values that may exceed it.
AGREEMENT = {
    **dict.fromkeys(range(Operation.BRIGHTNESS), (2, 0.0)),  # Resampling is a mean, of slope 1, and rounds once more.
    **dict.fromkeys(range(Operation.BRIGHTNESS, Operation.SHARPNESS), (3, 0.0)),  # Slope 1.6.
    Operation.SHARPNESS: (3.2, 0.0),  # Slope 1.6, and 0.6 for the mean over the neighbours.
    Operation.POSTERIZE: (8, 0.0),  # 5 bits are steps of 8 levels.
    Operation.SOLARIZE: (1, 0.01),  # Slope 1, but for the step at 85.
    Operation.AUTO_CONTRAST: (8.7, 0.0),  # Slope 2.55 at a range of 100 levels, whose both ends may differ by one too.
    Operation.EQUALIZE: (20, 0.01),  # Steep where many pixels have the same level.
    Operation.HUE: (6, 0.0),  # A sixth of the circle from one channel to the next, of any chroma.
}


@pytest.mark.parametrize("operation", range(DRAWN + 1), ids=lambda operation: Operation(operation).name)
def test_resized_views_agree_within_the_slope_of_the_operation(files: Source, operation: int) -> None:
    """Channels of few levels are left out: a plain sky may become any picture when its contrast is raised."""
    recipe = Recipe(files, RandomResizedCrop(36), LEVELS)
    plain = batches(recipe, "torch")
    ranged = (plain.amax((2, 3)) - plain.amin((2, 3))) >= 100
    assert float(ranged.float().mean()) > 0.5
    by_dali, by_torch = (batches(replace(recipe, pixels=Pixels((Only(operation),))), loader) for loader in LOADERS)
    assert operation == Operation.IDENTITY or float((by_torch - plain).abs().mean()) > 1
    difference = (by_dali - by_torch).abs()[ranged]
    most, share = AGREEMENT[operation]
    assert float((difference > most).float().mean()) <= share


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_changes_the_view_that_it_makes_without_operations(files: Source, loader: str) -> None:
    """Crops are the same with and without operations, which come after them and before the normalisation."""
    plain = Recipe(files, RandomResizedCrop(36), LEVELS)
    policies = Pixels((RandAugment(2, 20),))
    found = batches(replace(plain, pixels=policies), loader)
    numbers = training(plain, request(), loader)._at.order.randoms(0, 0, 0, Share(), 4, "rand_augment")
    expected = policies.changed(batches(plain, loader), numbers)
    assert torch.equal(found, expected.float())


@pytest.mark.parametrize("loader", LOADERS)
def test_erasing_alone_leaves_the_rest_as_it_is(files: Source, loader: str) -> None:
    """Zeros after the normalisation; where nothing is erased, the bits of a run without the option."""
    recipe = Recipe(files, RandomResizedCrop(36), Normalisation((99.0,) * 3, (50.0,) * 3))
    plain = batches(recipe, loader)
    erased = batches(replace(recipe, pixels=Pixels(erasing=Erasing(1.0))), loader)
    changed = erased != plain
    assert torch.equal(erased[changed], torch.zeros(int(changed.sum())))
    assert (changed.flatten(1).sum(1) > 0).all() and 0.1 < float(changed.float().mean()) < 0.25


@pytest.mark.parametrize("loader", LOADERS)
def test_formats(loader: str) -> None:
    recipe = Recipe(arrays(), RandomCrop((32, 40), (8, 12)), Normalisation((99.0,) * 3, (50.0,) * 3), ALL)
    plain = batches(recipe, loader)

    def other(channels_last: bool) -> Tensor:
        asked = replace(request(), channels_last=channels_last)
        ((images, _),) = next(training(recipe, asked, loader, dtype="float16").epoch())
        return images

    assert plain.is_contiguous() and plain.dtype == torch.float32
    assert other(False).is_contiguous() and other(False).dtype == torch.float16
    assert other(True).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(other(True), other(False)) and torch.equal(other(False), plain.half())


def options(files: Path, loader: str) -> dict[str, object]:
    return {
        "trivial_augment": True,
        "color_jitter": {"brightness": 0.4, "hue": 0.1},
        "random_erasing": 0.3,
        "erasing_value": "random",
        "repeated_augmentation": 3,
        "loader": loader,
    }


def built(folder: Path, loader: str, asked: Request) -> TrainPipeline:
    asked_for = settings(folder, **options(folder, loader))
    return pipelines.build(asked_for, asked).train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for part in ("train", "val"):
        for i, image in enumerate(crops(48, 40, 52)):
            place = root / part / f"class_{i % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:02}.jpg", quality=95)
    return root


@pytest.mark.parametrize("loader", LOADERS)
def test_workers_and_resume_change_nothing(folder: Path, loader: str) -> None:
    assert_workers_and_resume_change_nothing(partial(built, folder, loader))


def test_three_workers_of_repeats_that_they_do_not_divide(folder: Path) -> None:
    first, second = (global_batches(partial(built, folder, "dali"), workers, steps=2) for workers in (1, 3))
    for (images, labels), (others, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
        eights = images.split(8)
        assert torch.equal(labels[:8], labels[8:16]) and torch.equal(labels[:8], labels[16:])
        assert not torch.equal(eights[0], eights[1]) and not torch.equal(eights[1], eights[2])


def test_large_images_get_the_same_operations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their view is made outside of DALI's graph, by the torch loader's code: the same bits as there."""
    monkeypatch.setattr(dali_images, "LARGE_PIXELS", 0)
    by_dali, by_torch = (global_batches(partial(built, folder, loader), 1, steps=2) for loader in LOADERS)
    for (images, _), (others, _) in zip(by_dali, by_torch, strict=True):
        assert torch.equal(images, others)
