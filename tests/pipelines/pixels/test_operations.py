"""Each operation, for a whole batch at once, against torchvision's for one picture, on photographs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.common.torchvision_ops import import_torchvision
from pipelines.pixels.applying import KERNELS, applied
from pipelines.pixels.tables import BINS, DRAWN, RANDOM, SIGNED, WIDE, Operation, Space
from tests.pipelines.pixels.photographs import crops

import_torchvision()
from torchvision.transforms import InterpolationMode, v2  # noqa: E402 - it may need its operators declared first

POLICIES: dict[str, tuple[Any, Space]] = {
    "trivial": (v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR), WIDE),
    "rand": (v2.RandAugment(interpolation=InterpolationMode.BILINEAR), RANDOM),
}
NAMES = [operation.name.title().replace("_", "") for operation in Operation][:DRAWN]
MOVING = range(Operation.SHEAR_X, Operation.ROTATE + 1)


def batch(grey: bool = False) -> Tensor:
    images = torch.from_numpy(crops().transpose(0, 3, 1, 2).copy())
    return images[:, :1].contiguous() if grey else images


def made(images: Tensor, operation: int, magnitude: float) -> Tensor:
    n = len(images)
    return applied(images, iter([(np.full(n, operation), np.full(n, magnitude))]))


def reference(policy: Any, images: Tensor, operation: int, magnitude: float) -> Tensor:
    return torch.stack(
        [
            policy._apply_image_or_video_transform(
                image, NAMES[operation], magnitude, policy.interpolation, policy._fill
            )
            for image in images
        ]
    )


def magnitudes(space: Space, operation: int) -> list[float]:
    """Some of the table, both signs: no turn, quarter turns, and the largest too."""
    found = space.magnitudes(*crops().shape[1:3])[operation, [0, 1, 10, 17, 20, BINS - 1]].tolist()
    return sorted({sign * m for m in found for sign in ((1, -1) if SIGNED[operation] else (1,))})


@pytest.mark.parametrize("name", POLICIES)
def test_operations_and_magnitudes_are_torchvisions(name: str) -> None:
    policy, space = POLICIES[name]
    assert list(policy._AUGMENTATION_SPACE) == NAMES
    for height, width in ((224, 224), (33, 100)):
        table = space.magnitudes(height, width)
        for operation, (values, signed) in enumerate(policy._AUGMENTATION_SPACE.values()):
            assert signed == SIGNED[operation]
            if (expected := values(BINS, height, width)) is not None:
                assert table[operation].tolist() == expected.double().tolist(), "to the last bit: some are cut"


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("operation", range(DRAWN), ids=NAMES)
@pytest.mark.parametrize("grey", [False, True], ids=["rgb", "grey"])
def test_pixels_are_torchvisions(name: str, operation: int, grey: bool) -> None:
    """Bit for bit. Where pixels move by fractions, a mean of two that ends on one half may be rounded either way."""
    policy, space = POLICIES[name]
    for magnitude in magnitudes(space, operation):
        found, expected = made(batch(grey), operation, magnitude), reference(policy, batch(grey), operation, magnitude)
        if operation in MOVING:
            difference = (found.int() - expected.int()).abs()
            assert int(difference.max()) <= 1 and float(difference.float().mean()) < 0.05
        else:
            assert torch.equal(found, expected), magnitude
        if operation not in (Operation.IDENTITY, Operation.EQUALIZE, Operation.AUTO_CONTRAST) and magnitude == 0:
            assert operation == Operation.SOLARIZE or torch.equal(found, batch(grey)), "none is the picture itself"


@pytest.mark.parametrize("turn", [-0.5, -0.31, -0.05, 0.0, 0.1, 0.27, 0.5])
def test_the_hue_is_torchvisions(turn: float) -> None:
    """Equal but for a few levels: where one is cut, the last bit decides, and the formula is another."""
    difference = (made(batch(), Operation.HUE, turn).int() - v2.functional.adjust_hue(batch(), turn).int()).abs()
    assert int(difference.max()) <= 1 and float(difference.float().mean()) < 0.002
    assert torch.equal(made(batch(grey=True), Operation.HUE, turn), batch(grey=True))


@pytest.mark.parametrize("operation", sorted(KERNELS), ids=lambda operation: Operation(operation).name)
def test_a_picture_does_not_depend_on_those_beside_it(operation: int) -> None:
    """Bit for bit, alone and at any place of a batch: else other numbers of workers would see other pictures."""
    images = batch().repeat(3, 1, 1, 1)
    operations = np.array([operation, operation, Operation.EQUALIZE, operation] * 3)
    values = np.linspace(0.05, 0.45, len(operations))
    together = applied(images, iter([(operations, values)]))
    for place in range(len(images)):
        alone = applied(images[place : place + 1], iter([(operations[place : place + 1], values[place : place + 1])]))
        assert torch.equal(alone[0], together[place])
    transposed = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(applied(transposed, iter([(operations, values)])), together)


def test_hand_worked_levels() -> None:
    """One row of four pixels."""
    row = torch.tensor([10, 10, 20, 250], dtype=torch.uint8).view(1, 1, 1, 4)

    def of(operation: int, magnitude: float = 0) -> list[int]:
        return [int(level) for level in made(row, operation, magnitude).flatten()]

    assert of(Operation.POSTERIZE, 4) == [0, 0, 16, 240]
    assert of(Operation.SOLARIZE, 20 / 255) == [10, 10, 235, 5]
    assert of(Operation.AUTO_CONTRAST) == [0, 0, 10, 254], "10 * 255/240 = 10.6, and in float32 254.99998, are cut"
    assert of(Operation.EQUALIZE) == [10, 10, 20, 250], "fewer than 255 pixels: nothing to spread"
    assert of(Operation.BRIGHTNESS, 0.5) == [15, 15, 30, 255]
    assert of(Operation.CONTRAST, -1) == [72, 72, 72, 72], "the mean is 72.5, cut"
    assert of(Operation.TRANSLATE_X, 1.9) == [0, 10, 10, 20]
    assert of(Operation.ROTATE, 180) == [250, 20, 10, 10]
