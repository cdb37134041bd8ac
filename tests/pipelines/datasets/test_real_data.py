"""Real MNIST, CIFAR-10 as JPEG, and Imagenette, in the folder that DYNSPARSE_DATA names; skipped without it.

It holds MNIST/raw/*, cifar10-jpeg/{train,test}/CLASS/*.jpg and imagenette/{train,val}/WNID/*.JPEG.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines
from pipelines.datasets import cifar10, mnist
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.mnist import MnistSettings
from pipelines.datasets.small_images import SmallImagesSettings, build
from tests.pipelines.streams import LOADERS, endless, request
from tests.training import runs

FOLDER = os.environ.get("DYNSPARSE_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="DYNSPARSE_DATA names no folder of real data")
ROOT = Path(FOLDER or "nowhere")


def test_mnist_is_as_the_settings_say() -> None:
    settings = MnistSettings(name="mnist", path=str(ROOT))
    pipelines.check(settings)
    train, test = mnist.load(settings)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert tuple(np.bincount(train.labels)) == mnist.SAMPLES
    assert train.images.mean() == pytest.approx(mnist.MEAN, abs=0.02)
    assert train.images.std() == pytest.approx(mnist.STD, abs=0.02)


def test_a_sparse_network_learns_mnist(tmp_path: Path) -> None:
    settings = runs.config(
        name="a",
        runs=str(tmp_path),
        model={"name": "mnist_mlp"},
        data={"name": "mnist", "path": str(ROOT), "loader": "torch", "threads": 1},
        method={"name": "dsr", "period": 100, "target_moves": 600},
        sparsity={"fc": 0.9},
        train={"epochs": 1, "global_batch_size": 100, "lr": {"name": "steps", "table": 0.1}},
    )
    summary = runs.trainer(settings).fit()
    assert summary.test_top1 is not None and summary.test_top1 > 94


def test_cifar10_as_jpeg_is_nearly_the_original() -> None:
    """Its means and deviations are those of the original pixels, to two grey levels."""
    settings = SmallImagesSettings(name="small_images", path=str(ROOT / "cifar10-jpeg"), threads=1).resolved()
    pipelines.check(settings)
    data = build(settings, request())
    assert data.normalisation is not None
    assert data.normalisation.mean == pytest.approx(cifar10.MEAN, abs=2)
    assert data.normalisation.std == pytest.approx(cifar10.STD, abs=2)
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    images, _ = next(iter(data.test.batches()))
    assert images.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("loader", LOADERS)
def test_imagenette_in_batches(loader: str) -> None:
    settings = ImagenetSettings(
        name="imagenet", path=str(ROOT / "imagenette"), image_size=64, loader=loader, threads=1
    ).resolved()
    assert settings.classes == 10
    pipelines.check(settings)
    data = pipelines.build(settings, request())
    images, labels = next(endless(data.train))
    data.close()
    assert images.shape == (24, 3, 64, 64)
    assert images.isfinite().all() and labels.unique().numel() > 3


def test_loaders_agree_on_imagenette() -> None:
    """Training's random crops, in grey levels after normalisation: a level is 0.017."""
    batches = []
    for loader in LOADERS:
        settings = ImagenetSettings(
            name="imagenet", path=str(ROOT / "imagenette"), image_size=64, loader=loader, threads=1
        ).resolved()
        data = pipelines.build(settings, request())
        batches.append(next(endless(data.train)))
        data.close()
    (ours, our_labels), (theirs, their_labels) = batches
    assert torch.equal(our_labels, their_labels)
    assert float((ours - theirs).abs().mean()) < 0.017
