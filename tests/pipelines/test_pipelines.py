"""The real pipelines, through DALI."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pipelines
from pipelines.base import Data, EvaluationPipeline
from pipelines.common.errors import UserError
from pipelines.datasets import digits, mnist, synthetic
from pipelines.datasets.cifar10 import Cifar10Settings
from pipelines.datasets.digits import DigitsSettings
from pipelines.datasets.mnist import MnistSettings
from pipelines.datasets.synthetic import SyntheticSettings
from pipelines.order import SampleOrder
from pipelines.ordered import OrderedTraining, assemble
from pipelines.settings import DataSetSettings
from pipelines.sources.base import Arrays
from pipelines.views import AsItIs, Normalisation, Recipe, View
from tests.pipelines.streams import FOR_ARRAYS, assert_known_beforehand, evaluation, request, training, whole

UNCHANGED = Normalisation(mean=(0.0,), std=(1.0,))


def arrays(n: int) -> Arrays:
    """Images that say which sample they are: label and both pixels are its number."""
    numbers = np.arange(n)
    return Arrays(np.stack([numbers, numbers], 1).astype(np.uint8).reshape(n, 1, 2, 1), numbers.astype(np.int64))


def numbered(n: int, view: View = AsItIs(), normalisation: Normalisation = UNCHANGED) -> Recipe:  # noqa: B008
    return Recipe(arrays(n), view, normalisation)


def samples_of(step: list[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    for images, labels in step:
        assert torch.equal(images[:, 0, 0, 0].long(), labels), "image and label belong together"
    return [int(label) for _, labels in step for label in labels]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 12), st.integers(0, 20), st.integers(0, 3))
def test_the_samples_of_all_workers_are_the_global_batch(
    workers: int, parts: int, more: int, left: int, epoch: int
) -> None:
    batch = workers * parts + more
    recipe = numbered(batch + left)
    ranks = [training(recipe, request(rank, workers, parts, batch), "torch") for rank in range(workers)]
    found = np.concatenate([part for rank in ranks for part in rank.samples(epoch, 0)])
    assert found.tolist() == SampleOrder(7, batch + left, batch).batch(epoch, 0).tolist()
    assert len(np.unique(found)) == batch
    assert all(len(rank.samples(epoch, 0)) == parts for rank in ranks)


@pytest.mark.parametrize("loader", FOR_ARRAYS)
@pytest.mark.parametrize("size", [96, 101])
@pytest.mark.parametrize(("workers", "parts"), [(1, 1), (2, 1), (3, 1), (4, 1), (2, 3)])
def test_training_follows_the_order_for_any_number_of_workers(size: int, workers: int, parts: int, loader: str) -> None:
    order = SampleOrder(7, size, 24)
    ranks = [training(numbered(size), request(r, workers, parts), loader) for r in range(workers)]
    for epoch in range(3):
        steps = list(zip(*(rank.epoch() for rank in ranks), strict=True))
        assert len(steps) == size // 24
        for number, shares in enumerate(steps):
            assert [i for share in shares for i in samples_of(share)] == order.batch(epoch, number).tolist()
            for rank, share in zip(ranks, shares, strict=True):
                assert np.concatenate(rank.samples(epoch, number)).tolist() == samples_of(share)


@pytest.mark.parametrize("loader", FOR_ARRAYS)
@pytest.mark.parametrize("size", [48, 50, 1])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_evaluation_is_exact_and_repeatable(size: int, workers: int, loader: str) -> None:
    ranks = [evaluation(numbered(size), request(r, workers), loader) for r in range(workers)]
    for _ in range(2):
        assert [i for rank in ranks for batch in rank.batches() for i in samples_of([batch])] == list(range(size))


@pytest.mark.parametrize("loader", FOR_ARRAYS)
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6])
def test_resume_delivers_identical_bytes(stop: int, loader: str) -> None:
    """Stop after any batch, in mid-epoch and at its end, in another process's pipeline."""
    recipe = numbered(101, AsItIs(size=(5, 5)), Normalisation(mean=(3.0,), std=(7.0,)))

    def stream(pipeline: OrderedTraining, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The next steps, over the ends of epochs (of four)."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        while len(found) < steps:
            for step in pipeline.epoch():
                found += step
                if len(found) == steps:
                    break
        return found

    whole = training(recipe, request(), loader)
    expected = stream(whole, 10)
    first = training(recipe, request(), loader)
    stream(first, stop)
    second = training(recipe, request(), loader, threads=2)
    second.load_state_dict(first.state_dict())
    rest = stream(second, 10 - stop)
    for (images, labels), (images_again, labels_again) in zip(expected[stop:], rest, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)


@pytest.mark.parametrize("workers", [1, 4])
def test_resume_on_another_number_of_workers_sees_the_rest(workers: int) -> None:
    ranks = [training(numbered(101), request(r, 2)) for r in range(2)]
    seen: list[int] = []
    for _, shares in zip(range(2), zip(*(rank.epoch() for rank in ranks), strict=True), strict=False):
        seen += [i for share in shares for i in samples_of(share)]
    state = ranks[0].state_dict()
    assert state == ranks[1].state_dict()
    others = [training(numbered(101), request(r, workers)) for r in range(workers)]
    rest: list[int] = []
    for other in others:
        other.load_state_dict(state)
    for shares in zip(*(other.epoch() for other in others), strict=True):
        rest += [i for share in shares for i in samples_of(share)]
    assert sorted(seen + rest) == sorted(SampleOrder(7, 101, 24).permutation(0)[:96].tolist())


def test_a_position_in_other_data_is_refused() -> None:
    pipeline = training(numbered(101), request())
    other = training(numbered(100), request())
    with pytest.raises(UserError, match=r"the data have changed .* \(101 training samples then, 100 now;"):
        other.load_state_dict(pipeline.state_dict())


def assembled(validation_samples: int = 0, split_seed: int = 0, **options: Any) -> Data:
    settings = DataSetSettings(name="numbers", threads=1, validation_samples=validation_samples, split_seed=split_seed)
    plain = Recipe(Arrays(arrays(101).images, np.arange(101) % 3), AsItIs(), UNCHANGED)
    return assemble(plain, plain, numbered(9), settings, request(**options))


def numbers_in(pipeline: EvaluationPipeline | None) -> list[int]:
    return [int(number) for number in whole(pipeline)[0][:, 0, 0, 0]]


def test_held_out_samples_are_not_trained_on() -> None:
    data = assembled(validation_samples=20, evaluate_train=True)
    assert data.validation is not None and data.train_evaluation is not None
    held_out, trained_on = numbers_in(data.validation), numbers_in(data.train_evaluation)
    assert (data.validation.samples, data.train_evaluation.samples) == (20, 81)
    assert sorted(held_out + trained_on) == list(range(101))
    for _ in range(3):
        seen = [int(i) for step in data.train.epoch() for images, _ in step for i in images[:, 0, 0, 0]]
        assert len(seen) == len(set(seen)) == 81 // 24 * 24
        assert set(seen) <= set(trained_on)
    assert numbers_in(data.validation) == held_out, "a second pass is the same"
    assert numbers_in(data.test) == list(range(9))


@pytest.mark.parametrize("workers", [2, 3])
def test_held_out_samples_are_evaluated_once_over_all_workers(workers: int) -> None:
    ranks = [assembled(validation_samples=20, rank=r, workers=workers) for r in range(workers)]
    held_out = [i for rank in ranks for i in numbers_in(rank.validation)]
    assert held_out == numbers_in(assembled(validation_samples=20).validation)


def test_nothing_is_held_out_and_training_data_not_evaluated_unless_asked() -> None:
    data = assembled()
    assert data.validation is None and data.train_evaluation is None
    assert assembled(evaluate_train=True).train_evaluation is not None


def test_there_is_one_thing_to_choose_the_best_epoch_by() -> None:
    """Authors of data sets need not look to that."""
    settings = DataSetSettings(name="numbers", threads=1, validation_samples=20)
    plain = Recipe(Arrays(arrays(101).images, np.arange(101) % 3), AsItIs(), UNCHANGED)
    with pytest.raises(UserError, match=r"validation_samples is 20, and data\.name: numbers has validation data of"):
        assemble(plain, plain, numbered(9), settings, request(), numbered(5))
    settings = DataSetSettings(name="numbers", threads=1)
    with pytest.raises(UserError, match=r"data\.name: numbers has nothing to evaluate on; hold out training samples"):
        assemble(plain, plain, None, settings, request())
    data = assemble(plain, plain, None, settings, request(), numbered(5))
    assert data.test is None and numbers_in(data.validation) == list(range(5))


def test_a_position_in_another_split_is_refused() -> None:
    data, other = assembled(validation_samples=20), assembled(validation_samples=20, split_seed=1)
    with pytest.raises(UserError, match=r"other samples held out than data\.split_seed"):
        other.train.load_state_dict(data.train.state_dict())
    with pytest.raises(UserError, match="made with samples 81, this run has 101"):
        assembled().train.load_state_dict(data.train.state_dict())


def test_a_position_from_before_samples_could_be_held_out_is_taken() -> None:
    data, state = assembled(), assembled().train.state_dict()
    del state["split"]
    data.train.load_state_dict({**state, "batch": 1})
    assert len(list(data.train.epoch())) == 101 // 24 - 1


def test_a_batch_stays_as_it_is_while_later_ones_are_made() -> None:
    """DALI's memory is not copied: it must not be reused as long as a tensor holds it."""
    pipeline = training(numbered(240), request())
    held = [step[0] for step in pipeline.epoch()]
    kept = [(images.clone(), labels.clone()) for images, labels in held]
    list(pipeline.epoch())
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(held, kept, strict=True))


def first_batch(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    return next(data.train.epoch())[0]


def build(settings: DataSetSettings) -> Data:
    return pipelines.build(settings, request())


def test_digits() -> None:
    train, test = digits.load()
    assert (len(train), len(test)) == (1437, 360)
    share = np.bincount(test.labels) / np.bincount(np.concatenate((train.labels, test.labels)))
    assert abs(share - 0.2).max() < 0.005, "stratified: a fifth of each class"
    again, _ = digits.load()
    assert np.array_equal(train.images, again.images), "the split is fixed"
    everything = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in everything for image in test.images) == 0

    data = build(DigitsSettings(name="digits"))
    images, labels = first_batch(data)
    assert images.shape == (24, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert data.test.samples == 360
    whole = torch.cat([images for step in data.train.epoch() for images, _ in step])
    assert abs(float(whole.mean())) < 0.02, "normalised"
    assert 0.8 < float(whole.std()) < 1.02, "interpolation takes a little of the contrast"


def test_digits_are_upsampled_linearly() -> None:
    """DALI's resize equals torch's bilinear interpolation of the same scans."""
    train, test = digits.load()
    images, _ = next(iter(build(DigitsSettings(name="digits")).test.batches()))
    scans = torch.from_numpy(test.images[:16]).permute(0, 3, 1, 2).float()
    larger = torch.nn.functional.interpolate(scans, (28, 28), mode="bilinear", align_corners=False)
    expected = (larger - train.images.mean()) / train.images.std()
    assert torch.allclose(images, expected, atol=2e-5)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """The format of MNIST's files: a magic number with type and rank, the sizes, the bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, n in (("train", 50), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", random.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", random.integers(0, 10, n, dtype=np.uint8))
    return tmp_path


def test_mnist_from_files_in_its_real_format(mnist_folder: Path) -> None:
    settings = MnistSettings(name="mnist", path=str(mnist_folder))
    pipelines.check(settings)
    pipelines.fetch(settings)
    train, test = mnist.load(settings)
    data = build(settings)
    assert data.test.samples == 20
    images, labels = first_batch(data)
    order = SampleOrder(7, 50, 24).batch(0, 0)
    expected = (train.images[order].astype(np.float32) - mnist.MEAN) / mnist.STD
    assert np.allclose(images.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert labels.tolist() == train.labels[order].tolist()
    assert len(test) == 20


def test_absent_mnist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = MnistSettings(name="mnist", path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"data\.path: .*nowhere.* lacks train-images.*data\.download=true"):
        pipelines.check(settings)


def test_the_order_of_training_is_known_beforehand(mnist_folder: Path) -> None:
    assert_known_beforehand(DigitsSettings(name="digits"), 1437)
    assert_known_beforehand(SyntheticSettings(name="synthetic", shape=[1, 3, 4], samples=100), 100)
    assert_known_beforehand(MnistSettings(name="mnist", path=str(mnist_folder)), 50)
    assert_known_beforehand(MnistSettings(name="mnist", path=str(mnist_folder), download=True), 50)


@pytest.mark.parametrize(
    ("kind", "samples"), [(MnistSettings, 60000), (Cifar10Settings, 50000)], ids=["mnist", "cifar10"]
)
def test_nothing_is_fetched_to_know_it(kind: type[DataSetSettings], samples: int, tmp_path: Path) -> None:
    asked = kind.model_validate({"name": kind.__name__[:-8].lower(), "path": str(tmp_path / "data"), "download": True})
    found = pipelines.position_of(asked, request(batch=100))
    assert found.epochs.steps(0) == samples // 100
    with pytest.raises(UserError, match=f"the data set has {samples} samples"):
        pipelines.position_of(asked, request(batch=samples + 1))
    saved = {"seed": 7, "samples": samples, "global_batch": 100, "listing": "a", "split": "b", "epoch": 3, "batch": 2}
    found.load_state_dict(saved)
    with pytest.raises(UserError, match="made with seed 8"):
        found.load_state_dict({**saved, "seed": 8})
    assert not (tmp_path / "data").exists()


def test_damaged_mnist_is_named(mnist_folder: Path) -> None:
    (mnist_folder / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(gzip.compress(b"no labels"))
    with pytest.raises(UserError, match=r"data\.path: MNIST in .* cannot be read"):
        mnist.load(MnistSettings(name="mnist", path=str(mnist_folder)))


def test_synthetic_is_any_shape_and_the_same_every_time() -> None:
    settings = SyntheticSettings(name="synthetic", shape=[3, 9, 7], number_of_classes=4, samples=60, test_samples=30)
    images, labels = first_batch(build(settings))
    assert images.shape == (24, 3, 9, 7)
    assert int(labels.max()) < 4
    first, second = synthetic.load(settings), synthetic.load(settings)
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        DigitsSettings(name="digits", validation_samples=100),
        SyntheticSettings(name="synthetic", shape=[1, 3, 3], validation_samples=100),
    ],
    ids=lambda settings: settings.name,
)
def test_every_data_set_holds_samples_out(settings: DataSetSettings) -> None:
    data = pipelines.build(settings, request(evaluate_train=True))
    assert data.validation is not None and data.train_evaluation is not None
    assert data.validation.samples == len(whole(data.validation)[1]) == 100
    assert data.train_evaluation.samples + 100 == (1437 if settings.name == "digits" else 1000)
    assert torch.equal(whole(data.validation)[1].bincount(), torch.full((10,), 10))


def test_torchvision_imports_beside_any_build_of_torch() -> None:
    from pipelines.common.torchvision_ops import import_torchvision

    import_torchvision()
    import_torchvision()
    import torchvision

    assert torchvision.models.resnet18 is not None
