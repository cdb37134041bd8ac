"""Settings and pipelines of photographs of many sizes, wherever they are stored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipelines.base import Data, Request
from pipelines.common.paths import PathText
from pipelines.common.settings import AtLeast1
from pipelines.datasets.stored import StoredSettings
from pipelines.decoding import LARGEST_OF_IMAGENET, Decoding, Place
from pipelines.images.encoded import MOST_PIXELS
from pipelines.ordered import assemble
from pipelines.settings import Side
from pipelines.sources.base import Encoded
from pipelines.sources.parts import Split
from pipelines.views import CentralCrop, Normalisation, RandomResizedCrop, Recipe

# Mean and standard deviation of ImageNet's training set, as fractions of 255: torchvision's figures.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = Normalisation(tuple(255 * x for x in MEAN), tuple(255 * x for x in STD))


FileSide = Annotated[int, Field(ge=1, le=65_535)]
"""Width or height of a file in pixels: a JPEG file has no more."""


def in_proportion(image_size: int) -> int:
    """Return the shorter side from which a central crop takes as much as 224 of 256 pixels."""
    return max(1, round(image_size * 256 / 224))


class PhotographSettings(StoredSettings):
    """Settings that data sets of photographs share."""

    crops: ClassVar[bool] = True
    path: PathText = "data/imagenet"
    """Folder that holds train and, to evaluate on, val (or valid, validation), test, or both."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """Action for a training file that cannot be read or decoded. stop: end the run; skip: use another of its class."""
    most_pixels: AtLeast1 = MOST_PIXELS
    """Most pixels that an image may declare. One that declares more is a bad file and is not decoded. So is a file of
    more bytes than four times this number."""
    exclude: PathText | None = None
    """File with the names of samples to skip, a line each, as `python -m pipelines scan` writes it."""
    decode: Place | None = None
    """The device on which DALI decodes in a run on GPUs. auto: the faster, as each worker measures at its start, and
    then runs do not repeat bit for bit. null: the GPU, if there is one."""
    largest_image: Annotated[list[FileSide], Field(min_length=2, max_length=2)] = [*LARGEST_OF_IMAGENET]
    """Width and height that a GPU's decoder has memory for from the start, as `python -m pipelines scan` finds them.
    Larger images make it grow in mid-run."""
    augment: bool = True
    """Train on random resized crops, half of them mirrored. If false, train on images as evaluation sees them."""
    image_size: Side = 224
    """Height and width of the images that the network gets."""
    evaluation_resize: Side | None = None
    """Size of an image's shorter side before the central crop of an evaluation. null: 256/224 of `image_size`."""

    @model_validator(mode="before")
    @classmethod
    def _one_size(cls, given: Any) -> Any:
        """Say where a table belongs, which people try here first."""
        if isinstance(given, dict) and isinstance(given.get("image_size"), (dict, list)):
            raise ValueError(
                "image_size is a table; evaluation has one size, which image_size is: give it as a number, and the "
                "table of training as train.image_size"
            )
        return given

    @model_validator(mode="after")
    def _crop_fits(self) -> PhotographSettings:
        if self.evaluation_resize is not None and self.evaluation_resize < self.image_size:
            raise ValueError(
                f"evaluation_resize is {self.evaluation_resize}, image_size {self.image_size}; "
                f"the crop must fit into the image: set evaluation_resize={self.image_size} or more"
            )
        return self

    @model_validator(mode="after")
    def _decoder_fits(self) -> PhotographSettings:
        if self.decode is not None and self.loader != "dali":
            raise ValueError(
                f"decode is {self.decode}, and loader {self.loader} decodes on the CPU always: leave decode out, or "
                f"set loader=dali"
            )
        return self

    @property
    def resize(self) -> int:
        """Size of an image's shorter side before the central crop."""
        return in_proportion(self.image_size) if self.evaluation_resize is None else self.evaluation_resize

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, self.image_size, self.image_size)

    @property
    def pixel_limit(self) -> int:
        return self.most_pixels

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.decode, (self.largest_image[0], self.largest_image[1]))

    @property
    def skips_bad_files(self) -> bool:
        return self.on_bad_file == "skip"


def photographs(sources: Split[Encoded], settings: PhotographSettings, request: Request) -> Data:
    """Return the pipelines of a data set of photographs."""
    central = CentralCrop(settings.image_size, settings.resize)
    plain = sources.map(lambda source: Recipe(source, central, NORMALISATION))
    window = RandomResizedCrop(settings.image_size)
    augmented = Recipe(sources.train, window, NORMALISATION) if settings.augment else plain.train
    return assemble(augmented, plain.train, plain.test, settings, request, plain.validation)
