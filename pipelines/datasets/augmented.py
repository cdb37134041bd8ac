"""Settings of data sets whose training images can be augmented beyond crops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from pipelines.common.settings import Settings
from pipelines.pixels.erasing import Erasing, Value
from pipelines.pixels.policies import ColorJitter, Policy, RandAugment, TrivialAugment
from pipelines.pixels.recipe import Pixels
from pipelines.pixels.tables import BINS
from pipelines.settings import DataSetSettings

if TYPE_CHECKING:
    from typing_extensions import Self

Strength = Annotated[float, Field(ge=0, le=10)]
MOST_REPEATS = 64


class RandAugmentSettings(Settings):
    """RandAugment(n, m) with torchvision's operations and 31 magnitudes."""

    operations: Annotated[int, Field(ge=1, le=14)] = 2
    """Operations on each image, one after another (n)."""
    magnitude: Annotated[int, Field(ge=0, le=BINS - 1)] = 9
    """Magnitude of all of them (m): 0 is none, 30 the largest."""
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability of each operation to be applied: 1 in the paper, 0.5 in timm's `rand-m9-...`, which DeiT has."""


class ColorJitterSettings(Settings):
    """Random colours, as torchvision's ColorJitter. A factor is uniform in 1 - x to 1 + x, and not below 0."""

    brightness: Strength = 0.0
    """Largest distance from 1 of the factor of brightness."""
    contrast: Strength = 0.0
    """Largest distance from 1 of the factor of contrast."""
    saturation: Strength = 0.0
    """Largest distance from 1 of the factor of saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of the colour circle, either way; 0.5 is any turn."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError(
                "color_jitter has nothing above 0; set brightness, contrast, saturation or hue, or remove it"
            )
        return self


class AugmentedSettings(DataSetSettings):
    """Settings of operations on the pixels of training images, after crop and mirroring. All are off by default."""

    trivial_augment: bool = False
    """TrivialAugmentWide: one random operation of a random magnitude on each image, as torchvision has it."""
    rand_augment: RandAugmentSettings | None = None
    """RandAugment, such as {operations: 2, magnitude: 9}."""
    color_jitter: ColorJitterSettings | None = None
    """Random brightness, contrast, saturation and hue in a random order, after the above; such as {brightness: 0.4}."""
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of images that lose a random window, after the normalisation."""
    erasing_value: Value = "zero"
    """Value of an erased window: zero is the mean colour, random is normal noise for each pixel."""
    repeated_augmentation: Annotated[int, Field(ge=1, le=MOST_REPEATS)] = 1
    """Times that each sample of a global batch appears in it, augmented anew. Epochs stay as long."""

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if self.trivial_augment and self.rand_augment is not None:
            raise ValueError(
                "trivial_augment and rand_augment are both set, and each is a whole policy; "
                "set trivial_augment=false or rand_augment=null"
            )
        return self

    @model_validator(mode="after")
    def _has_colours(self) -> Self:
        """Raise ValueError for changes of colour that grey images do not show."""
        jitter = self.color_jitter
        for name in () if jitter is None or self.image_shape[0] != 1 else ("saturation", "hue"):
            if value := getattr(jitter, name):
                raise ValueError(
                    f"color_jitter.{name} is {value:g}, and the images are grey: it would do nothing; leave it out, "
                    f"brightness and contrast change grey images"
                )
        return self

    @model_validator(mode="after")
    def _erases(self) -> Self:
        if self.erasing_value != "zero" and self.random_erasing == 0:
            raise ValueError(
                f"erasing_value is {self.erasing_value}, random_erasing 0: nothing is erased; "
                "set random_erasing, such as 0.1, or remove erasing_value"
            )
        return self

    @model_validator(mode="after")
    def _is_augmented(self) -> Self:
        given = [name for name in AugmentedSettings.model_fields if name in self._options()]
        if given and getattr(self, "augment", True) is False:
            raise ValueError(
                f"augment is false, and {given[0]} is set; train on the images as they are, or set augment=true"
            )
        if given == ["repeated_augmentation"] and not hasattr(self, "augment"):
            raise ValueError(
                f"repeated_augmentation is {self.repeated_augmentation}, and nothing is random about the images: "
                "they would be the same; set an augmentation too, such as trivial_augment=true"
            )
        return self

    def _options(self) -> set[str]:
        """Names of the options that are on."""
        on = {
            "trivial_augment": self.trivial_augment,
            "rand_augment": self.rand_augment is not None,
            "color_jitter": self.color_jitter is not None,
            "random_erasing": self.random_erasing > 0,
            "repeated_augmentation": self.repeated_augmentation > 1,
        }
        return {name for name, is_on in on.items() if is_on}

    @property
    def pixels(self) -> Pixels:
        erasing = Erasing(self.random_erasing, self.erasing_value) if self.random_erasing > 0 else None
        return Pixels(tuple(self._policies()), erasing)

    @property
    def repeats(self) -> int:
        return self.repeated_augmentation

    def without_repeats(self) -> Self:
        return self.model_copy(update={"repeated_augmentation": 1})

    def _policies(self) -> list[Policy]:
        policies: list[Policy] = [TrivialAugment()] if self.trivial_augment else []
        if (rand := self.rand_augment) is not None:
            policies.append(RandAugment(rand.operations, rand.magnitude, rand.probability))
        if (jitter := self.color_jitter) is not None:
            policies.append(ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
        return policies
