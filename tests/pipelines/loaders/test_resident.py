"""The loader that holds a data set where the network is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipelines
from pipelines.common.errors import UserError
from pipelines.datasets.in_memory import random_crops
from pipelines.datasets.small_images import SmallImagesSettings
from pipelines.loaders.torch_views import made, made_together
from pipelines.sources.base import Arrays
from pipelines.views import AsItIs, CentralCrop, Normalisation, RandomCrop, RandomResizedCrop, Recipe, View
from tests.pipelines.pictures import numbered_folder, settings
from tests.pipelines.streams import joined, request, training

SOURCE = Arrays(
    np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), dtype=np.uint8), np.arange(40, dtype=np.int64) % 4
)


@pytest.mark.parametrize(
    "view", [AsItIs(), AsItIs(size=(5, 7)), AsItIs(size=(30, 24)), RandomCrop((8, 8), room=(4, 2))], ids=str
)
def test_images_are_made_at_once_as_they_are_one_by_one(view: View) -> None:
    indices = np.array([3, 39, 0, 3])
    numbers = view.numbers(np.random.default_rng(1).random((4, view.uniforms)))
    one_by_one = [made(view, image, *row) for image, *row in zip(SOURCE.images[indices], *numbers, strict=True)]
    images, places = torch.from_numpy(SOURCE.images), torch.from_numpy(indices)
    assert torch.equal(made_together(view, images, places, *map(torch.from_numpy, numbers)), torch.stack(one_by_one))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("pixels", [{}, {"trivial_augment": True, "random_erasing": 0.5, "erasing_value": "random"}])
def test_the_same_batches_as_of_torch_to_the_bit(workers: int, pixels: dict[str, Any]) -> None:
    recipe = random_crops(SOURCE, Normalisation((10.0, 20.0, 30.0), (2.0, 3.0, 4.0)), padding=2)
    recipe = replace(recipe, pixels=SmallImagesSettings.model_validate({"name": "small_images", **pixels}).pixels)
    for rank in range(workers):
        (images, labels), (others, same) = (
            joined(batch for step in training(recipe, request(rank, workers), loader).epoch() for batch in step)
            for loader in ("resident", "torch")
        )
        assert torch.equal(images, others) and torch.equal(labels, same)
        assert images.unique().numel() > 100


@pytest.mark.parametrize("view", [CentralCrop(6, 9), RandomResizedCrop(6)], ids=str)
def test_views_that_are_made_one_by_one(view: View) -> None:
    recipe = Recipe(SOURCE, view, Normalisation((10.0,) * 3, (2.0,) * 3))
    (images, labels), (others, same) = (
        joined(batch for step in training(recipe, request(), loader).epoch() for batch in step)
        for loader in ("resident", "torch")
    )
    assert torch.equal(images, others) and torch.equal(labels, same) and images.shape[2:] == (6, 6)


@pytest.mark.parametrize("view", [AsItIs(), AsItIs(size=(30, 24)), RandomCrop((8, 8), room=(4, 2))], ids=str)
@pytest.mark.parametrize("pixels", [{}, {"trivial_augment": True, "random_erasing": 0.5}])
def test_the_memory_layout_is_the_one_asked_for(view: View, pixels: dict[str, Any]) -> None:
    """Images lie channels last in memory. A network that gets them so computes in another way, and other bits."""
    made_of = SmallImagesSettings.model_validate({"name": "small_images", **pixels}).pixels
    recipe = Recipe(SOURCE, view, Normalisation((0.0,) * 3, (1.0,) * 3), made_of)
    for channels_last in (False, True):
        asked = replace(request(), channels_last=channels_last)
        ((images, _),) = next(training(recipe, asked, "resident").epoch())
        assert images.is_contiguous() != channels_last
        assert images.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_a_data_set_is_held_once() -> None:
    """It stays in the memory that it has already, on the CPU."""
    recipe = Recipe(SOURCE, AsItIs(), Normalisation((0.0,) * 3, (1.0,) * 3))
    pipeline = training(recipe, request(), "resident")
    next(pipeline.epoch())
    images, labels = pipeline._loader.held(SOURCE)  # type: ignore[attr-defined]
    assert images.data_ptr() == SOURCE.images.ctypes.data and labels.data_ptr() == SOURCE.labels.ctypes.data


def test_data_sets_on_the_disk_are_refused(tmp_path: Path) -> None:
    folder = numbered_folder(tmp_path / "images", train=4, val=2)
    with pytest.raises(UserError, match=r"data\.loader is resident, but .* is not held in memory; use"):
        pipelines.check(settings(folder, loader="resident"))


def test_a_view_of_files_has_no_way() -> None:
    with pytest.raises(NotImplementedError, match="CentralCrop"):
        made_together(CentralCrop(8, 9), torch.empty(1, 9, 9, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
