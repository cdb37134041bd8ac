"""CIFAR-10, from small files in its real format."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pipelines
from pipelines.base import Request, TrainPipeline
from pipelines.common.errors import UserError
from pipelines.common.torchvision_ops import import_torchvision
from pipelines.datasets import cifar10
from pipelines.datasets.cifar10 import Cifar10Settings
from pipelines.loaders.registry import loader as loader_of
from pipelines.order import SampleOrder, Share
from pipelines.sources.base import Arrays
from pipelines.views import Normalisation, RandomCrop, Recipe
from tests.pipelines.pictures import put
from tests.pipelines.streams import (
    FOR_ARRAYS,
    SEED,
    assert_known_beforehand,
    assert_workers_and_resume_change_nothing,
    global_batches,
    request,
    settings_for,
    whole,
)

UNCHANGED = Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3)
EACH = 20  # Images a file.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven pickles as the archive has them, with their MD5 in torchvision's tables in place of the official ones."""
    random = np.random.default_rng(0)
    files: dict[str, dict[str, object]] = {
        name: {
            "batch_label": name,
            "labels": [int(label) for label in random.permutation(np.arange(EACH) % 10)],
            "data": random.integers(0, 256, (EACH, 3 * 32 * 32), dtype=np.uint8),
            "filenames": [f"{name}_{i}.png" for i in range(EACH)],
        }
        for name in cifar10._FILES[:-1]
    }
    files["batches.meta"] = {"label_names": [*"abcdefghij"], "num_vis": 3072, "num_cases_per_batch": EACH}
    (tmp_path / "cifar-10-batches-py").mkdir()
    digests = {}
    for name, content in files.items():
        raw = pickle.dumps(content, protocol=2)
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(raw)
        digests[name] = hashlib.md5(raw).hexdigest()
    import_torchvision()
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "train_list", [[name, digests[name]] for name in cifar10._FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})
    return tmp_path


def settings(folder: Path, **options: object) -> Cifar10Settings:
    return Cifar10Settings.model_validate({"name": "cifar10", "path": str(folder), "threads": 1, **options})


def normalised(images: NDArray[np.uint8]) -> torch.Tensor:
    """The formula of torchvision's ToTensor and Normalize."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) / 255 for values in (cifar10.MEAN, cifar10.STD))
    return (scaled - mean) / std


def test_files_in_their_real_format(folder: Path) -> None:
    pipelines.check(settings(folder))
    pipelines.fetch(settings(folder))
    train, test = cifar10.load(settings(folder))
    with (folder / "cifar-10-batches-py" / "data_batch_2").open("rb") as file:
        batch = pickle.load(file)
    assert (len(train), len(test)) == (5 * EACH, EACH)
    assert train.labels[EACH : 2 * EACH].tolist() == batch["labels"]
    red = batch["data"][3, :1024].reshape(32, 32)
    assert np.array_equal(train.images[EACH + 3, :, :, 0], red)
    data = pipelines.build(settings(folder), request())
    images, labels = whole(data.test)
    assert torch.allclose(images, normalised(test.images), atol=1e-5)
    assert labels.tolist() == test.labels.tolist()


@pytest.mark.parametrize("loader", FOR_ARRAYS)
def test_crops_and_mirroring_are_those_of_the_random_numbers(folder: Path, loader: str) -> None:
    train, _ = cifar10.load(settings(folder))
    order = SampleOrder(SEED, 5 * EACH, 24)
    found = pipelines.build(settings(folder, loader=loader), request()).train
    for batch, step in enumerate(found.epoch()):
        ((images, labels),) = step
        expected = []
        for sample, (y, x, flip) in zip(order.batch(0, batch), order.randoms(0, batch, 0, Share(), 3), strict=True):
            padded = np.pad(train.images[sample], ((4, 4), (4, 4), (0, 0)), mode="reflect")
            top, left = int(y * 9), int(x * 9)
            crop = padded[top : top + 32, left : left + 32]
            expected.append(crop[:, ::-1] if flip < 0.5 else crop)
        assert torch.allclose(images, normalised(np.stack(expected)), atol=1e-5)
        assert labels.tolist() == train.labels[order.batch(0, batch)].tolist()


@pytest.mark.parametrize("loader", FOR_ARRAYS)
def test_every_one_of_the_81_crops_is_reached_exactly_and_both_ways(loader: str) -> None:
    """Each of the 81 x 2 crops is the one that its random numbers stand for.

    The image says where each pixel was. The numbers lie in the middle and at both ends of the crops' cells.
    """
    rows, columns = np.mgrid[0:40, 0:40]
    places = np.stack((rows, columns, np.zeros_like(rows)), axis=2).astype(np.uint8)[np.newaxis]
    recipe = Recipe(Arrays(places, np.zeros(1, np.int64)), RandomCrop((32, 32), room=(8, 8)), UNCHANGED)
    made_by = loader_of(settings_for(loader), request())
    cells = np.stack(np.meshgrid(np.arange(9), np.arange(9), np.arange(2), indexing="ij"), axis=-1).reshape(-1, 3)
    for inside in (0.0, 0.5, 1 - 1e-12):
        stream = [(np.zeros(len(cells), np.int64), (cells + inside) / (9, 9, 2))]
        images, _ = made_by.feed(recipe, iter(stream * 9), len(cells)).next()
        assert images.shape == (162, 3, 32, 32)
        assert images[:, 0, 0, 0].tolist() == cells[:, 0].tolist()
        left = torch.where(torch.from_numpy(cells[:, 2] == 0), images[:, 1, 0, -1], images[:, 1, 0, 0])
        assert left.tolist() == cells[:, 1].tolist()
        assert torch.equal(images[:, 0, -1, 0], images[:, 0, 0, 0] + 31)


def train_pipeline(folder: Path, **options: object) -> TrainPipeline:
    return pipelines.build(settings(folder, **options), request()).train


@pytest.mark.parametrize(("loader", "augment"), [("dali", True), ("dali", False), ("torch", True)])
def test_workers_and_resume_change_nothing(folder: Path, loader: str, augment: bool) -> None:
    def build(asked: Request) -> TrainPipeline:
        given = settings(folder, loader=loader, augment=augment, validation_samples=10)
        return pipelines.build(given, asked).train

    assert_workers_and_resume_change_nothing(build)


def test_augmentation_is_new_every_epoch_and_can_be_left_out(folder: Path) -> None:
    train, _ = cifar10.load(settings(folder))

    def of_sample_0(augment: bool) -> list[torch.Tensor]:
        pipeline = train_pipeline(folder, augment=augment)
        order = SampleOrder(SEED, 5 * EACH, 24)
        found = []
        for epoch in range(6):
            images = torch.cat([images for ((images, _),) in pipeline.epoch()])
            found += list(images[np.flatnonzero(order.permutation(epoch)[: len(images)] == 0)])
        assert len(found) >= 4
        return found

    plain = of_sample_0(augment=False)
    assert all(torch.allclose(image, normalised(train.images[:1])[0], atol=1e-5) for image in plain)
    augmented = of_sample_0(augment=True)
    assert not any(torch.equal(augmented[i], augmented[j]) for i in range(len(augmented)) for j in range(i))


def test_the_held_out_are_seen_without_augmentation_and_not_trained_on(folder: Path) -> None:
    train, _ = cifar10.load(settings(folder))
    data = pipelines.build(settings(folder, validation_samples=30), request(evaluate_train=True))
    held_out, trained_on = whole(data.validation), whole(data.train_evaluation)
    assert held_out[1].bincount().tolist() == [3] * 10
    seen = {image.numpy().tobytes() for image in torch.cat((held_out[0], trained_on[0]))}
    assert len(seen) == len(held_out[0]) + len(trained_on[0]) == 100
    every = normalised(train.images)
    for image in held_out[0]:
        assert int((every - image).abs().amax((1, 2, 3)).lt(1e-5).sum()) == 1


def test_batches_differ_from_step_to_step(folder: Path) -> None:
    (first, _), (second, _) = global_batches(lambda asked: pipelines.build(settings(folder), asked).train, 1, 2)
    assert not torch.equal(first, second)


def test_absent_files_are_refused_before_anything_starts(folder: Path) -> None:
    (folder / "cifar-10-batches-py" / "data_batch_4").unlink()
    match = r"data\.path: .*cifar-10-batches-py lacks data_batch_4;.*data\.download=true"
    with pytest.raises(UserError, match=match):
        pipelines.check(settings(folder))
    with pytest.raises(UserError, match=match):
        pipelines.fetch(settings(folder))
    pipelines.check(settings(folder, download=True))


def test_the_check_refuses_what_a_start_refuses(folder: Path) -> None:
    """Other files may be in the right format: but they are pickles, which may run anything."""
    file = folder / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()), protocol=4))
    match = r"data\.path: .*data_batch_3 is not CIFAR-10's \(its MD5 is \w{32}, .* one \w{32}\); remove it and fetch"
    with pytest.raises(UserError, match=match):
        pipelines.check(settings(folder))
    with pytest.raises(UserError, match="cannot be read"):
        cifar10.load(settings(folder))


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(("kind", "reason"), [("pipe", "is a pipe, not a file"), ("folder", "is a folder"),
                                              ("huge", "has 5,368,709,120 bytes, more than")])  # fmt: skip
def test_what_is_no_file_of_cifar_is_refused(folder: Path, kind: str, reason: str, download: bool) -> None:
    """The check and a start refuse it: opening a pipe would wait without end."""
    file = folder / "cifar-10-batches-py" / "data_batch_3"
    put(file, kind)
    asked = settings(folder, download=download)
    for act in (lambda: pipelines.check(asked), lambda: pipelines.fetch(asked), lambda: cifar10.load(asked)):
        with pytest.raises(UserError, match=rf"data\.path: .*data_batch_3 cannot be read \({reason}"):
            act()


def test_an_archive_that_is_a_pipe_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "cifar-10-python.tar.gz")
    (folder / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz cannot be read \(is a pipe"):
        pipelines.check(settings(folder, download=True))


def test_damaged_files_are_named_and_not_unpickled(folder: Path) -> None:
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"cposix\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"data\.path: CIFAR-10 in .* cannot be read .*remove it and fetch it anew"):
        cifar10.load(settings(folder))


@pytest.mark.parametrize("augment", [True, False])
def test_the_order_of_training_is_known_beforehand(folder: Path, augment: bool) -> None:
    assert_known_beforehand(settings(folder, augment=augment), 5 * EACH)
    assert_known_beforehand(settings(folder, augment=augment, download=True), 5 * EACH)
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        pipelines.position_of(settings(folder), request())
    fetched_anew = pipelines.position_of(settings(folder, download=True), request(batch=100))
    assert fetched_anew.epochs.steps(0) == 500


@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_with_crops_and_without(folder: Path, before: bool) -> None:
    """The samples are the same, so that their order is, too."""

    def pipeline(augment: bool) -> TrainPipeline:
        return pipelines.build(settings(folder, augment=augment), request()).train

    saved = pipeline(before).state_dict()
    other = pipeline(not before)
    other.load_state_dict(saved)
    assert other.state_dict() == saved
    train, _ = cifar10.load(settings(folder))
    assert train.listing != saved["listing"]
    other.load_state_dict({**saved, "listing": train.listing})  # Of older runs without crops.
    with pytest.raises(UserError, match="the data have changed since the checkpoint was made"):
        other.load_state_dict({**saved, "listing": "0" * 16})
