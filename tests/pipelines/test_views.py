"""Every view, on every kind of source, through both loaders: the same images, in each format."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import pipelines
from pipelines.base import Batch, Request
from pipelines.loaders import dali_views, torch_views
from pipelines.loaders.registry import loader as loader_of
from pipelines.order import SampleOrder, Share
from pipelines.sources.base import Arrays, Source
from pipelines.sources.image_folder import list_images
from pipelines.views import AsItIs, CentralCrop, Normalisation, RandomCrop, RandomResizedCrop, Recipe, View
from tests.pipelines.pictures import picture, settings
from tests.pipelines.streams import LOADERS, settings_for, whole

NORMALISATION = Normalisation((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
VIEWS = {
    AsItIs: AsItIs(size=(30, 20)),
    RandomCrop: RandomCrop(size=(32, 40), room=(8, 10)),
    CentralCrop: CentralCrop(size=24, resize=27),
    RandomResizedCrop: RandomResizedCrop(size=28),
}


@cache
def images() -> NDArray[np.uint8]:
    """Images of one size, so that they can be arrays as well as files."""
    return np.stack([np.array(picture(50, 40, seed)) for seed in range(12)])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    root = tmp_path_factory.mktemp("views")
    (root / "train" / "ape").mkdir(parents=True)
    for i, image in enumerate(images()):
        Image.fromarray(image).save(root / "train" / "ape" / f"{i:02}.png")
    return {
        "arrays": Arrays(images(), np.arange(12) % 3),
        "files": list_images(root, "train", ["ape"]),
    }


def batch_of(source: Source, view: View, loader: str, **options: object) -> Batch:
    asked = Request(7, 12, Share(), 12, None, channels_last=bool(options.pop("channels_last", False)))
    made_by = loader_of(settings_for(loader).model_copy(update=options), asked)
    uniforms = SampleOrder(7, 12, 12).randoms(0, 0, 0, Share(), view.uniforms)
    feed = made_by.feed(Recipe(source, view, NORMALISATION), iter([(np.arange(12), uniforms)] * 9), 12)
    batch = feed.next()
    feed.close()
    return batch


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (NORMALISATION.mean, NORMALISATION.std))
    return images.float() * std + mean


def test_every_view_is_known_to_every_loader() -> None:
    assert set(View.__subclasses__()) == set(VIEWS) == set(dali_views.made.registry) - {object}
    assert set(torch_views.made.registry) == set(dali_views.made.registry)


@pytest.mark.parametrize("kind", ["arrays", "files"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=lambda view: type(view).__name__)
def test_loaders_agree(sources: dict[str, Source], view: View, kind: str) -> None:
    """Lossless images: what differs is that ATen rounds to whole grey levels, after each of two passes."""
    (first, labels), (second, others) = (batch_of(sources[kind], view, loader) for loader in LOADERS)
    assert torch.equal(labels, others)
    assert first.shape == second.shape and first.dtype == second.dtype == torch.float32
    assert first.is_contiguous() and second.is_contiguous()
    difference = (grey_levels(first) - grey_levels(second)).abs()
    assert float(difference.max()) < 1.6
    assert float(difference.mean()) < 0.35


@pytest.mark.parametrize("loader", LOADERS)
def test_files_and_arrays_give_the_same(sources: dict[str, Source], loader: str) -> None:
    for view in VIEWS.values():
        arrays, files = (batch_of(sources[kind], view, loader)[0] for kind in ("arrays", "files"))
        assert float((grey_levels(arrays) - grey_levels(files)).abs().max()) < 0.01


@pytest.mark.parametrize("loader", LOADERS)
def test_formats(sources: dict[str, Source], loader: str) -> None:
    view = VIEWS[RandomResizedCrop]
    plain, _ = batch_of(sources["files"], view, loader)
    last, _ = batch_of(sources["files"], view, loader, channels_last=True)
    half, _ = batch_of(sources["files"], view, loader, dtype="float16")
    both, _ = batch_of(sources["files"], view, loader, dtype="float16", channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert both.is_contiguous(memory_format=torch.channels_last) and both.dtype == torch.float16
    assert half.is_contiguous() and half.dtype == torch.float16
    assert torch.equal(last, plain)
    assert torch.equal(both, half)
    assert torch.allclose(half.float(), plain, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_the_largest_and_the_smallest(tmp_path: Path, loader: str) -> None:
    """Just under the limit of `data.most_pixels`, and one pixel; both in training and in evaluation."""
    large = Image.linear_gradient("L").resize((8900, 6700)).convert("RGB")
    for part in ("train", "val"):
        (tmp_path / part / "ape").mkdir(parents=True)
        large.save(tmp_path / part / "ape" / "large.jpg", quality=80)
        Image.new("RGB", (1, 1), (10, 200, 30)).save(tmp_path / part / "ape" / "small.png")
    asked = settings(tmp_path, loader=loader, number_of_classes=2)
    (tmp_path / "train" / "bee").mkdir()
    Image.new("RGB", (9, 9000), (50, 60, 70)).save(tmp_path / "train" / "bee" / "narrow.bmp")
    data = pipelines.build(asked, Request(7, 3, Share(), 2, None))
    ((trained_on, _),) = next(data.train.epoch())
    tested, _ = whole(data.test)
    assert trained_on.shape == (3, 3, 16, 16) and tested.shape == (2, 3, 16, 16)
    assert trained_on.isfinite().all()
    assert data.normalisation is not None
    rows = tested[0, 0] * data.normalisation.std[0] + data.normalisation.mean[0]
    assert torch.allclose(rows.mean(1), torch.linspace(8, 247, 16), atol=2), "the gradient, top to bottom"
    pixel = tested[1, :, 5, 5] * torch.tensor(data.normalisation.std) + torch.tensor(data.normalisation.mean)
    assert torch.allclose(pixel, torch.tensor([10.0, 200, 30]), atol=1e-3)
