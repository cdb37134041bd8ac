"""Settings of augmentation: what they mean, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import pipelines
from pipelines.base import Request
from pipelines.common.errors import UserError
from pipelines.datasets.registry import DataSettings
from pipelines.order import Share
from pipelines.pixels.erasing import Erasing
from pipelines.pixels.policies import ColorJitter, RandAugment, TrivialAugment
from pipelines.pixels.recipe import NO_PIXELS, Pixels
from pipelines.settings import DataSetSettings
from tests.pipelines.streams import LOADERS, assert_workers_and_resume_change_nothing, request

READ: TypeAdapter[DataSetSettings] = TypeAdapter(DataSettings)
NAMES = ["cifar10", "digits", "imagenet", "mnist", "parquet", "small_images", "webdataset"]
GREY = ["digits", "mnist"]


def settings(name: str = "digits", **options: Any) -> DataSetSettings:
    return READ.validate_python({"name": name, **options})


@pytest.mark.parametrize("name", [*NAMES, "synthetic"])
def test_all_is_off_by_default(name: str) -> None:
    assert settings(name).pixels == NO_PIXELS and settings(name).repeats == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_of_images_has_every_option(name: str) -> None:
    """Policies in the order of torchvision's and timm's recipes: the policy, then colours, erasing at the end."""
    options: dict[str, Any] = {
        "rand_augment": {"operations": 3, "magnitude": 12},
        "color_jitter": {"brightness": 0.4, **({} if name in GREY else {"hue": 0.1})},
        "random_erasing": 0.25,
        "erasing_value": "random",
        "repeated_augmentation": 3,
    }
    found = settings(name, **options)
    jitter = ColorJitter(brightness=0.4, contrast=0.0, saturation=0.0, hue=0.0 if name in GREY else 0.1)
    assert found.pixels == Pixels((RandAugment(3, 12), jitter), Erasing(0.25, "random"))
    assert found.repeats == 3
    assert settings(name, trivial_augment=True).pixels == Pixels((TrivialAugment(),))
    assert settings(name, rand_augment={}).pixels == Pixels((RandAugment(2, 9),))
    assert settings(name, rand_augment={"probability": 0.5}).pixels == Pixels((RandAugment(2, 9, 0.5),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trivial_augment": True, "rand_augment": {}}, "trivial_augment and rand_augment are both set"),
        ({"rand_augment": {"magnitude": 31}}, "magnitude\n.*less than or equal to 30"),
        ({"rand_augment": {"magnitude": -1}}, "magnitude\n.*greater than or equal to 0"),
        ({"rand_augment": {"operations": 0}}, "operations\n.*greater than or equal to 1"),
        ({"rand_augment": {"n": 2}}, "n\n.*Extra inputs"),
        ({"color_jitter": {}}, "color_jitter has nothing above 0"),
        ({"color_jitter": {"hue": 0.6}}, r"hue\n.*less than or equal to 0\.5"),
        ({"color_jitter": {"contrast": -0.1}}, r"contrast\n.*greater than or equal to 0"),
        ({"random_erasing": 1.5}, "random_erasing\n.*less than or equal to 1"),
        ({"random_erasing": float("nan")}, "random_erasing\n.*finite"),
        ({"random_erasing": 0.1, "erasing_value": "noise"}, "erasing_value\n.*'zero' or 'random'"),
        ({"erasing_value": "random"}, "erasing_value is random, random_erasing 0: nothing is erased"),
        ({"repeated_augmentation": 0}, "repeated_augmentation\n.*greater than or equal to 1"),
        ({"repeated_augmentation": 3}, "repeated_augmentation is 3, and nothing is random about the images"),
    ],
)
def test_bad_values_and_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        settings(**options)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "small_images"])
@pytest.mark.parametrize("option", [{"trivial_augment": True}, {"random_erasing": 0.1}, {"repeated_augmentation": 2}])
def test_augmentation_that_is_switched_off_is_not_asked_for(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"augment is false, and {next(iter(option))} is set"):
        settings(name, augment=False, **option)
    assert settings(name, augment=True, **option)


def test_synthetic_images_have_no_such_options() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        settings("synthetic", trivial_augment=True)


@pytest.mark.parametrize("loader", LOADERS)
def test_grey_digits_are_augmented_on_any_number_of_workers(loader: str) -> None:
    """Resized views of one channel, in floating point before the operations."""
    asked = settings(loader=loader, threads=1, trivial_augment=True, random_erasing=0.2, repeated_augmentation=2)
    assert_workers_and_resume_change_nothing(lambda request: pipelines.build(asked, request).train)


def test_loaders_agree_about_digits() -> None:
    found = []
    for loader in LOADERS:
        asked = settings(loader=loader, threads=1, color_jitter={"brightness": 0.5, "contrast": 0.5})
        ((images, _),) = next(pipelines.build(asked, Request(0, 64, Share(), 64, None)).train.epoch())
        found.append(images)
    assert float((found[0] - found[1]).abs().max()) < 0.05, "two of 255 levels at most, in units of 94 levels"


def test_validation_and_test_images_stay_as_they_are() -> None:
    plain, augmented = (
        pipelines.build(settings(threads=1, validation_samples=100, **options), request(evaluate_train=True))
        for options in ({}, {"trivial_augment": True, "random_erasing": 1.0, "repeated_augmentation": 2})
    )
    for name in ("test", "validation", "train_evaluation"):
        first, second = (next(getattr(data, name).batches()) for data in (plain, augmented))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_a_position_with_other_repeats_is_refused() -> None:
    """A checkpoint without a word about repeats has none, as those of older versions."""
    plain = pipelines.position_of(settings(), request())
    repeated = pipelines.position_of(settings(trivial_augment=True, repeated_augmentation=3), request())
    assert "repeated_augmentation" not in plain.state_dict()
    repeated.load_state_dict(repeated.state_dict())
    with pytest.raises(UserError, match="made with repeated_augmentation 1, this run has 3"):
        repeated.load_state_dict(plain.state_dict())
    with pytest.raises(UserError, match="made with repeated_augmentation 3, this run has 1"):
        plain.load_state_dict(repeated.state_dict())
    assert repeated.epochs == plain.epochs
    with pytest.raises(UserError, match=r"repeated_augmentation is 5, train\.global_batch_size 24"):
        pipelines.position_of(settings(trivial_augment=True, repeated_augmentation=5), request())
