"""Options that would do nothing are refused, in one line that says what makes them do something."""

from __future__ import annotations

from typing import Any

import pytest

from dynsparse.errors import UserError
from tests.training import runs

DIGITS = {"name": "digits"}
PHOTOGRAPHS = {"name": "imagenet", "image_size": 12, "number_of_classes": 3}
BOTH = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}

IDLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # What does nothing, what makes it do something, and the message.
    (
        {"train": {"early_stop": {"improvement": 0.5}}},
        {"train": {"early_stop": {"improvement": 0.5, "patience": 2}}},
        "train.early_stop: improvement is 0.5, and patience is not given: no run ends early; set patience, such as 3,",
    ),
    (
        {"train": {"ema": {"start_epoch": 2.0}}},
        {"train": {"ema": {"start_epoch": 1.9}}},
        "train: ema.start_epoch is 2, and the run has 2 epochs: the average would stay a copy of the weights; set it",
    ),
    (
        {"train": {"mixing": {"mixup_alpha": 0.2, "until_epoch": 1}, "start_epoch": 1}},
        {"train": {"mixing": {"mixup_alpha": 0.2, "until_epoch": 1}}},
        "train: mixing.until_epoch is 1, and start_epoch 1: nothing would be mixed; set it above that",
    ),
    (
        {"train": {"mixing": {"mixup_alpha": 0.2, "cutmix_share": 0.9}}},
        {"train": {"mixing": {**BOTH, "cutmix_share": 0.9}}},
        "train.mixing: cutmix_share is 0.9, and cutmix_alpha is 0: set cutmix_alpha, or leave cutmix_share out",
    ),
    (
        {"train": {"mixing": {**BOTH, "cutmix_share": 1.0}}},
        {"train": {"mixing": {**BOTH, "mixup_alpha": 0.0}}},
        "train.mixing: cutmix_share is 1, and mixup_alpha 0.2 would do nothing: set mixup_alpha=0, or a share between",
    ),
    (
        {"train": {"mixing": {**BOTH, "cutmix_share": 0.0}}},
        {"train": {"mixing": {**BOTH, "cutmix_share": 0.1}}},
        "cutmix_share is 0, and cutmix_alpha 1 would do nothing: set cutmix_alpha=0",
    ),
    (
        {"train": {"teacher": {"source": "a", "share": 1.0}, "label_smoothing": 0.1}},
        {"train": {"teacher": {"source": "a", "share": 0.9}, "label_smoothing": 0.1}},
        "train: teacher.share is 1, so that labels count for nothing, and label_smoothing is 0.1: set share below 1",
    ),
    (
        {"train": {"teacher": {"source": "a", "share": 1.0}, "loss": "bce"}},
        {"train": {"teacher": {"source": "a", "share": 1.0}}},
        "so that labels count for nothing, and loss is bce: set share below 1, or leave loss out",
    ),
    (
        {"data": {**DIGITS, "color_jitter": {"brightness": 0.4, "hue": 0.1}}},
        {"data": {**DIGITS, "color_jitter": {"brightness": 0.4}}},
        "data: color_jitter.hue is 0.1, and the images are grey: it would do nothing; leave it out, brightness and con",
    ),
    (
        {"data": {"name": "small_images", "number_of_classes": 3, "augment": False, "padding": 2}},
        {"data": {"name": "small_images", "number_of_classes": 3, "augment": True, "padding": 2}},
        "data: augment is false, and padding is 2; images that are not cropped are not padded: leave it out, or set",
    ),
    (
        {"data": {**DIGITS, "color_jitter": {"saturation": 0.4}, "repeated_augmentation": 2}},
        {"data": {**PHOTOGRAPHS, "color_jitter": {"saturation": 0.4}, "repeated_augmentation": 2}},
        "color_jitter.saturation is 0.4, and the images are grey",
    ),
]


@pytest.mark.parametrize(("idle", "working", "message"), IDLE, ids=[message[:40] for _, _, message in IDLE])
def test_options_that_would_do_nothing(idle: dict[str, Any], working: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        runs.config(**idle)
    (line,) = caught.value.lines
    assert message in line
    runs.config(**working)
