"""Policies and erasing: from random numbers to operations and windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.pixels.erasing import AREA, ATTEMPTS, Erasing, noise
from pipelines.pixels.policies import ColorJitter, RandAugment, TrivialAugment
from pipelines.pixels.recipe import Pixels
from pipelines.pixels.tables import BINS, DRAWN, SIGNED, WIDE, Operation

MANY = np.random.default_rng(0).random((20_000, 24))


def test_trivial_augment_draws_each_operation_magnitude_and_sign_equally_often() -> None:
    ((operations, magnitudes),) = TrivialAugment().rounds(MANY[:, :3], 224, 224)
    counts = np.bincount(operations, minlength=DRAWN)
    assert len(counts) == DRAWN and counts.min() > 0.9 * len(MANY) / DRAWN
    table = WIDE.magnitudes(224, 224)
    for operation in range(DRAWN):
        drawn = magnitudes[operations == operation]
        allowed = np.concatenate((table[operation], -table[operation] if SIGNED[operation] else []))
        assert set(drawn) == set(allowed), "all of the table, and nothing else"
        if SIGNED[operation]:
            assert 0.4 < (drawn < 0).mean() < 0.56  # One in 31 is zero.


def test_one_sample_by_hand() -> None:
    """Operation floor(0.4 * 14) = 5, bin floor(0.5 * 31) = 15 of 30: half of 135 degrees, negated."""
    ((operations, magnitudes),) = TrivialAugment().rounds(np.array([[0.4, 0.5, 0.2]]), 32, 32)
    assert operations.tolist() == [Operation.ROTATE] and magnitudes.tolist() == [-67.5]


def test_rand_augment_has_rounds_of_one_magnitude() -> None:
    policy = RandAugment(operations=3, magnitude=30)
    rounds = list(policy.rounds(MANY[:, : policy.uniforms], 100, 50))
    assert len(rounds) == 3
    for operations, magnitudes in rounds:
        assert set(magnitudes[operations == Operation.ROTATE]) == {30.0, -30.0}
        across = set(np.abs(magnitudes[operations == Operation.TRANSLATE_X]))
        assert across == {float(np.float32(150 / 331 * 50))}, "a share of the width"
        assert set(magnitudes[operations == Operation.POSTERIZE]) == {4.0}
    assert 0.05 < (rounds[0][0] == rounds[1][0]).mean() < 0.09, "one in 14: rounds are independent"


def test_rand_augment_may_leave_operations_out() -> None:
    """Each by itself, by numbers of its own: what is drawn for the others stays."""
    numbers = np.random.default_rng(1).random((4000, 9))
    every = list(RandAugment(3, 20).rounds(numbers[:, :6], 8, 8))
    some = list(RandAugment(3, 20, 0.25).rounds(numbers, 8, 8))
    pairs = zip(every, some, strict=True)
    left = [(drawn != 0) & (applied == 0) for (drawn, _), (applied, _) in pairs]
    assert Operation.IDENTITY == 0
    for out, (operations, magnitudes), (drawn, theirs) in zip(left, some, every, strict=True):
        assert abs(out.mean() - 0.75 * (drawn != Operation.IDENTITY).mean()) < 0.02
        assert np.array_equal(operations[~out], drawn[~out]) and np.array_equal(magnitudes[~out], theirs[~out])
    assert abs((left[0] & left[1]).mean() - left[0].mean() * left[1].mean()) < 0.02
    assert (RandAugment(3, 20).uniforms, RandAugment(3, 20, 0.25).uniforms) == (6, 9)


def test_color_jitter_is_uniform_in_its_ranges_and_in_random_order() -> None:
    policy = ColorJitter(brightness=0.4, contrast=2.0, saturation=0.0, hue=0.1)
    rounds = list(policy.rounds(MANY[:, :8], 8, 8))
    operations = np.stack([operation for operation, _ in rounds])
    assert {tuple(sorted(order)) for order in operations.T} == {
        (Operation.IDENTITY, Operation.BRIGHTNESS, Operation.CONTRAST, Operation.HUE)
    }
    assert len({tuple(order) for order in operations.T}) == 24
    magnitudes = np.stack([magnitude for _, magnitude in rounds])
    for operation, low, high in (
        (Operation.BRIGHTNESS, -0.4, 0.4),
        (Operation.CONTRAST, -1.0, 2.0),
        (Operation.HUE, -0.1, 0.1),
    ):
        drawn = magnitudes[operations == operation]
        assert low <= drawn.min() < low + 0.01 and high - 0.01 < drawn.max() <= high
        assert abs(drawn.mean() - (low + high) / 2) < 0.03


def test_the_order_of_colours_says_nothing_about_their_size() -> None:
    policy = ColorJitter(brightness=0.4, contrast=2.0, saturation=0.5, hue=0.1)

    def drawn(orders: slice, sizes: slice) -> tuple[list[list[int]], dict[int, list[float]]]:
        """Operations of each image, and the magnitudes of each operation."""
        numbers = np.concatenate((MANY[orders, :4], MANY[sizes, 4:8]), axis=1)
        rounds = list(policy.rounds(numbers, 8, 8))
        operations, magnitudes = (np.stack(parts, axis=1) for parts in zip(*rounds, strict=True))
        return operations.tolist(), {int(one): magnitudes[operations == one].tolist() for one in np.unique(operations)}

    first, second = slice(0, 50), slice(50, 100)
    (order, sizes), (other_order, same_sizes), (same_order, other_sizes) = (
        drawn(*numbers) for numbers in ((first, first), (second, first), (first, second))
    )
    assert order == same_order != other_order
    assert sizes == same_sizes != other_sizes


def test_windows_are_torchvisions() -> None:
    """Share of images, area and place; a window is smaller than the image both ways."""
    windows = dict(Erasing(0.25).windows(MANY, 40, 60))
    assert 0.235 < len(windows) / len(MANY) < 0.265
    areas, ratios = zip(*((h * w / 2400, h / w) for _, _, h, w in windows.values()), strict=True)
    assert AREA[0] - 0.005 < min(areas) < 0.025 and 0.32 < max(areas) < AREA[1] + 0.01, "sides are rounded"
    assert min(ratios) < 0.35 and max(ratios) > 2.8
    assert all(0 <= top <= 40 - h and 0 <= left <= 60 - w for top, left, h, w in windows.values())
    assert {top == 0 for top, *_ in windows.values()} == {top + h == 40 for top, _, h, _ in windows.values()}
    assert dict(Erasing(1.0).windows(MANY[:9], 1, 400)) == {}, "nothing fits"


def test_a_window_by_hand() -> None:
    """Area 0.175 of 400 pixels, as high as wide: the side is rint(sqrt(70)) = 8; top floor(0.5 * 13)."""
    uniforms = np.full((1, Erasing.uniforms), 0.5)
    uniforms[0, ATTEMPTS : 2 * ATTEMPTS] = np.log(1 / 0.3) / np.log(3.3 / 0.3)
    images = torch.ones(1, 3, 20, 20)
    Erasing(1.0).erase(images, uniforms)
    expected = torch.ones(1, 3, 20, 20)
    expected[:, :, 6:14, 6:14] = 0
    assert torch.equal(images, expected)


def test_a_window_as_high_as_the_image_does_not_fit() -> None:
    """The first attempt is 9 x 9 pixels: too high for 9 rows, though not for 10. The second is 8 x 8."""
    uniforms = np.full((1, Erasing.uniforms), 0.5)
    uniforms[0, ATTEMPTS : 2 * ATTEMPTS] = np.log(1 / 0.3) / np.log(3.3 / 0.3)
    for height, side in ((9, 8), (10, 9)):
        pixels = height * 40
        uniforms[0, :2] = [(square / pixels - AREA[0]) / (AREA[1] - AREA[0]) for square in (81, 64)]
        ((_, (_, _, h, w)),) = Erasing(1.0).windows(uniforms, height, 40)
        assert (h, w) == (side, side)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_noise_is_normal_and_other_for_each_window(dtype: torch.dtype) -> None:
    images = torch.full((64, 3, 64, 64), 99.0, dtype=dtype)
    Erasing(1.0, "random").erase(images, MANY[:64])
    values = images[images != 99].float()
    assert abs(float(values.mean())) < 0.02 and abs(float(values.std()) - 1) < 0.02
    assert 0.66 < float((values.abs() < 1).float().mean()) < 0.70
    firsts = [image[image != 99][:5].tolist() for image in images]
    assert len({tuple(first) for first in firsts}) == 64


def test_noise_serves_the_largest_images() -> None:
    values = noise(3 * 1024 * 1024, torch.device("cpu"))
    assert len(values) == 2 * (1 << 22) and values.isfinite().all()
    assert torch.equal(values[: 1 << 22], values[1 << 22 :])


def test_each_part_gets_its_own_numbers() -> None:
    """Another part's uniforms change nothing: cut out of the whole, in the order of the streams."""
    jitter, erasing = ColorJitter(0.4, 0, 0, 0), Erasing(1.0)
    both = Pixels((TrivialAugment(), jitter), erasing)
    assert both.streams == (("trivial_augment", 3), ("color_jitter", 8), ("random_erasing", 24))
    uniforms = np.random.default_rng(1).random((4, 35))
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (4, 3, 9, 9), dtype=np.uint8))
    alone = Pixels((jitter,)).changed(Pixels((TrivialAugment(),)).changed(images, uniforms[:, :3]), uniforms[:, 3:11])
    assert torch.equal(both.changed(images, uniforms), alone)
    assert not torch.equal(alone, images)
    erased, erased_alone = alone.float(), alone.float()
    both.erase(erased, uniforms)
    erasing.erase(erased_alone, uniforms[:, 11:])
    assert torch.equal(erased, erased_alone)


def test_the_largest_magnitude_is_the_last() -> None:
    ((_, magnitudes),) = RandAugment(1, BINS - 1).rounds(np.array([[0.4, 0.9]]), 8, 8)
    ((_, none),) = RandAugment(1, 0).rounds(np.array([[0.4, 0.9]]), 8, 8)
    assert magnitudes.tolist() == [30.0] and none.tolist() == [0.0]
