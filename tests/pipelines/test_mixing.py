"""mixup and cutmix: by hand, as distributions, and the same for every number of workers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import pipelines
from pipelines.base import Batch, Request, TrainPipeline, dominant
from pipelines.datasets.synthetic import SyntheticSettings
from pipelines.mixing import Draw, Mixing, MixingSettings, boxes_of, own_weight, partners, symmetric_beta
from pipelines.order import Share
from pipelines.preview import picture
from tests.pipelines.streams import LOADERS, assert_same, endless, joined

BOTH = MixingSettings(mixup_alpha=0.4, cutmix_alpha=1.0, draw="pair", probability=0.8)


def synthetic(loader: str, **options: Any) -> SyntheticSettings:
    known = {"name": "synthetic", "shape": [3, 8, 6], "samples": 60, "test_samples": 2, "threads": 1}
    return SyntheticSettings(**known, loader=loader, **options)


def training(
    loader: str, share: Share, mixing: MixingSettings = BOTH, dtype: str = "float32", **options: Any
) -> TrainPipeline:
    asked = Request(7, 14, share, 2, None, mixing=mixing, **options)
    return pipelines.build(synthetic(loader, dtype=dtype), asked).train


def global_batches(loader: str, workers: int, parts: int, **options: Any) -> list[Batch]:
    """The first 6 batches, which go into a second epoch, put together from all workers."""
    ranks = [endless(training(loader, Share(rank, workers, parts, 2), **options)) for rank in range(workers)]
    return [joined(next(rank) for rank in ranks) for _ in range(6)]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("workers", "parts"), [(1, 1), (2, 1), (3, 1), (1, 4), (3, 2)])
def test_workers_and_micro_batches_change_no_pixel_and_no_label(loader: str, workers: int, parts: int) -> None:
    """7 pairs do not divide evenly among any of these. The expectation is mixed here, from whole plain batches."""
    mixing = Mixing(BOTH, seed=7, classes=10)
    plain = endless(training(loader, Share(), MixingSettings()))
    expected = []
    for step in range(6):
        images, labels = next(plain)
        draw = mixing.drawn(*divmod(step, 4), 14, 8, 6)
        assert draw is not None
        expected.append(mixing.mixed(images, labels, draw))
    assert_same(global_batches(loader, workers, parts), expected)


def test_channels_last_images_are_mixed_alike() -> None:
    found = global_batches("torch", 2, 1, channels_last=True)
    assert_same(found, global_batches("torch", 2, 1))


@pytest.mark.parametrize("loader", LOADERS)
def test_half_precision_stays_and_is_the_same_mixture(loader: str) -> None:
    for (half, labels), (whole, same_labels) in zip(
        global_batches(loader, 1, 1, dtype="float16"), global_batches(loader, 1, 1), strict=True
    ):
        assert half.dtype == torch.float16 and torch.equal(labels, same_labels)
        torch.testing.assert_close(half.float(), whole, rtol=2e-3, atol=2e-3)


def test_a_picture_shows_mixed_samples_by_their_dominant_class() -> None:
    asked = Request(7, 14, Share(unit=2), 2, None, mixing=BOTH)
    data = pipelines.build(synthetic("torch"), asked)
    images, soft = next(data.train.epoch())[0]
    assert soft.dim() == 2
    assert torch.equal(picture(data, images, soft, most=14), picture(data, images, soft.argmax(1), most=14))


def test_a_resumed_run_mixes_alike() -> None:
    first, second = (training("torch", Share(unit=2)) for _ in range(2))
    steps = endless(first)
    for _ in range(3):
        next(steps)
    second.load_state_dict(first.state_dict())
    assert_same([next(endless(second))], [next(steps)])


def test_mixing_ends_with_its_epoch() -> None:
    mixing = BOTH.model_copy(update={"until_epoch": 1, "probability": 1.0})
    labels = [labels for _, labels in global_batches("torch", 1, 1, mixing=mixing)]
    assert [one.dim() for one in labels] == [2, 2, 2, 2, 1, 1]
    plain = global_batches("torch", 1, 1, mixing=MixingSettings())
    assert_same(global_batches("torch", 1, 1, mixing=mixing)[4:], plain[4:])


def test_mixup_by_hand() -> None:
    mixing = Mixing(MixingSettings(mixup_alpha=1), 0, 3)
    images = torch.tensor([0.0, 8.0, 100.0, 200.0]).view(4, 1, 1, 1)
    draw = Draw(np.array([0.75, 0.5]), np.array([False, False]), np.zeros((2, 4), np.int64))
    mixed, soft = mixing.mixed(images, torch.tensor([0, 1, 2, 2]), draw)
    assert mixed.flatten().tolist() == [2.0, 6.0, 150.0, 150.0]
    assert soft.tolist() == [[0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0, 1], [0, 0, 1]]
    assert dominant(soft).tolist() == [0, 1, 2, 2]


def test_cutmix_by_hand() -> None:
    """A box of 1 x 2 of 2 x 4 pixels: a quarter of each image is the partner's."""
    mixing = Mixing(MixingSettings(cutmix_alpha=1), 0, 2)
    images = torch.stack((torch.zeros(1, 2, 4), torch.ones(1, 2, 4)))
    draw = Draw(np.array([0.75]), np.array([True]), np.array([[1, 2, 2, 4]]))
    mixed, soft = mixing.mixed(images, torch.tensor([0, 1]), draw)
    assert mixed[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert torch.equal(mixed[1], 1 - mixed[0])
    assert soft.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_boxes_by_hand() -> None:
    places = np.array([[0.5, 0.0], [0.99, 0.99], [0.5, 0.5]])
    found = boxes_of(np.array([0.75, 0.75, 0.0]), places, 8, 8)
    assert found.tolist() == [[2, 0, 6, 2], [5, 5, 8, 8], [0, 0, 8, 8]]


def test_labels_say_what_the_pixels_are() -> None:
    """The part of the partner's class is the partner's part of the weights, in cutmix to the pixel."""
    mixing = Mixing(BOTH, seed=1, classes=10)
    draw = mixing.drawn(0, 0, 2000, 7, 9)
    assert draw is not None
    weight = own_weight(draw, torch.empty(2000, 1, 7, 9, dtype=torch.float64)).mean((1, 2, 3))
    np.testing.assert_allclose(weight[::2].numpy(), draw.kept, rtol=0, atol=1e-12)
    assert torch.equal(weight[::2], weight[1::2])


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 8.0])
def test_fractions_are_of_the_beta_distribution(alpha: float) -> None:
    """Mean 1/2, variance 1/(4 (2a + 1)), fourth central moment 3 / (16 (2a + 1)(2a + 3)); a = 1 is uniform."""
    numbers = np.random.Generator(np.random.Philox(3)).random((200_000, 2))
    found = symmetric_beta(np.full(200_000, alpha), numbers) - 0.5
    assert np.isfinite(found).all() and abs(found).max() <= 0.5
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(200_000)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.01)
    assert (found**4).mean() == pytest.approx(3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)), rel=0.02)
    if alpha == 1:
        assert np.histogram(found, 10, (-0.5, 0.5))[0] == pytest.approx(np.full(10, 20_000), rel=0.03)


def test_extreme_numbers_give_fractions() -> None:
    numbers = np.array([[u, v] for u in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53) for v in (0.0, 0.25, 0.5, 0.75)])
    with np.errstate(divide="raise", invalid="raise"):
        for alpha in (1e-3, 0.2, 1.0, 1000.0):
            found = symmetric_beta(np.full(len(numbers), alpha), numbers)
            assert ((found >= 0) & (found <= 1)).all()


def test_each_random_number_has_one_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fraction says nothing about the kind or the place of a box, and the other way round."""
    numbers = np.full((1, 6), 0.5)
    mixing = Mixing(replace_settings(draw="pair", cutmix_share=0.6), seed=2, classes=2)
    monkeypatch.setattr("pipelines.mixing.fractions", lambda _: numbers.reshape(-1))

    def drawn(**changed: float) -> tuple[bool, list[int], list[int]]:
        """Return whether it is cut, height and width of the box, and its centre, doubled."""
        numbers[:] = [[0.5, 0.5, 0.9, 0.4, 0.5, 0.5]]
        for place, value in changed.items():
            numbers[0, int(place[1:])] = value
        draw = mixing.drawn(0, 0, 2, 40, 40)
        assert draw is not None
        top, left, bottom, right = draw.boxes[0].tolist()
        return bool(draw.is_cut[0]), [bottom - top, right - left], [top + bottom, left + right]

    is_cut, sides, centre = drawn()
    assert is_cut and sides[0] == sides[1] > 0 and centre == [40, 40]
    assert drawn(n0=0.1) == (True, sides, centre)
    assert drawn(n1=0.7)[0] is False
    for fraction in ({"n2": 0.7}, {"n3": 0.45}):
        _, others, same = drawn(**fraction)
        assert others != sides and same == centre
    assert drawn(n4=0.55) == (True, sides, [44, 40])
    assert drawn(n5=0.45) == (True, sides, [40, 36])


def replace_settings(**changed: Any) -> MixingSettings:
    return BOTH.model_copy(update={"probability": 1.0, **changed})


def test_shares_of_what_is_mixed() -> None:
    mixing = Mixing(BOTH.model_copy(update={"cutmix_share": 0.25}), seed=2, classes=2)
    draw = mixing.drawn(3, 1, 40_000, 32, 32)
    assert draw is not None
    assert draw.is_cut.mean() == pytest.approx(0.8 * 0.25, abs=0.01)
    assert (draw.kept < 1).mean() == pytest.approx(0.8, abs=0.02)  # Some boxes are empty.


def test_a_whole_batch_gets_one_draw_unless_each_pair_gets_its_own() -> None:
    for draw_, kinds in (("batch", 1), ("pair", 20)):
        mixing = Mixing(MixingSettings(mixup_alpha=1, draw=draw_), seed=2, classes=2)
        draws = [mixing.drawn(epoch, batch, 40, 4, 4) for epoch in (0, 1) for batch in (0, 1)]
        found = [set(draw.kept.tolist()) for draw in draws if draw is not None]
        assert [len(one) for one in found] == [kinds] * 4
        assert len(set.union(*found)) == 4 * kinds


def test_partners_are_their_own_inverse_and_stay_in_their_pair() -> None:
    values = torch.arange(6)
    assert partners(values).tolist() == [1, 0, 3, 2, 5, 4]


def test_a_share_keeps_units_together_and_parts_within_a_unit() -> None:
    for workers, parts in ((1, 1), (3, 1), (2, 3)):
        slices = [Share(rank, workers, parts, 2).part(p, 22) for rank in range(workers) for p in range(parts)]
        assert [s.start for s in slices] == [0, *(s.stop for s in slices[:-1])] and slices[-1].stop == 22
        assert all(s.start % 2 == 0 for s in slices)
        sizes = {s.stop - s.start for s in slices}
        assert max(sizes) - min(sizes) in (0, 2)


def test_off_it_does_nothing() -> None:
    assert not MixingSettings().is_on and MixingSettings().unit == 1
    request = Request(7, 12, Share(), 2, None)
    assert request == replace(request, mixing=MixingSettings())
    assert Mixing(MixingSettings(), 0, 2).drawn(0, 0, 12, 4, 4) is None


@pytest.mark.parametrize("setting", [{"probability": 0.5}, {"draw": "pair"}, {"until_epoch": 3}, {"cutmix_share": 0.9}])
def test_settings_without_an_alpha_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="nothing would be mixed; set one of them"):
        MixingSettings(**setting)
    assert MixingSettings(mixup_alpha=0.2, cutmix_alpha=1.0, **setting).is_on
