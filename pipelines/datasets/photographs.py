"""Settings and pipelines of photographs of many sizes, wherever they are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import model_validator

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.common.settings import AtLeast1
from pipelines.images.encoded import MOST_PIXELS
from pipelines.ordered import assemble
from pipelines.settings import Classes, DataSetSettings, Side
from pipelines.sources.base import Encoded
from pipelines.sources.class_list import MOST_CLASSES
from pipelines.sources.parts import Parts
from pipelines.views import CentralCrop, Normalisation, RandomResizedCrop, Recipe

if TYPE_CHECKING:
    from typing_extensions import Self

# Mean and standard deviation of ImageNet's training set, as fractions of 255: torchvision's figures.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = Normalisation(tuple(255 * x for x in MEAN), tuple(255 * x for x in STD))


class PhotographSettings(DataSetSettings):
    """Settings that data sets of photographs share."""

    path: PathText = "data/imagenet"
    """Folder that holds train and, to evaluate on, val (or valid, validation), test, or both."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """Action for a training file that cannot be read or decoded. stop: end the run; skip: use another of its class."""
    most_pixels: AtLeast1 = MOST_PIXELS
    """Most pixels that an image may declare. One that declares more is a bad file and is not decoded. So is a file of
    more bytes than four times this number."""
    exclude: PathText | None = None
    """File with the names of samples to skip, a line each, as `python -m pipelines scan` writes it."""
    augment: bool = True
    """Train on random resized crops, half of them mirrored. If false, train on images as evaluation sees them."""
    image_size: Side = 224
    """Height and width of the images that the network gets."""
    evaluation_resize: Side = 256
    """Size of an image's shorter side before the central crop of an evaluation. Default: 256/224 of `image_size`."""
    number_of_classes: Classes | None = None
    """Number of classes; read from the data if not given."""

    @model_validator(mode="before")
    @classmethod
    def _in_proportion(cls, given: Any) -> Any:
        if isinstance(given, dict) and "evaluation_resize" not in given and type(given.get("image_size")) is int:
            return {**given, "evaluation_resize": max(1, round(given["image_size"] * 256 / 224))}
        return given

    @model_validator(mode="after")
    def _crop_fits(self) -> PhotographSettings:
        if self.evaluation_resize < self.image_size:
            raise ValueError(
                f"evaluation_resize is {self.evaluation_resize}, image_size {self.image_size}; "
                f"the crop must fit into the image: set evaluation_resize={self.image_size} or more"
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        if self.number_of_classes is None:
            raise UserError("data.number_of_classes is not known before the data are read; set it to do without them")
        return self.number_of_classes

    def resolved(self) -> Self:
        if self.number_of_classes is not None:
            return self
        found = self.count_classes()
        if not 2 <= found <= MOST_CLASSES:
            classes = "1 class" if found == 1 else f"{found:,} classes"
            raise UserError(f"{self.where} has {classes}; there must be 2 to {MOST_CLASSES:,} to tell apart")
        return self.model_copy(update={"number_of_classes": found})

    def count_classes(self) -> int:
        """Count the classes of the training data. Raises UserError if they cannot be read."""
        raise NotImplementedError

    @property
    def pixel_limit(self) -> int:
        return self.most_pixels

    @property
    def skips_bad_files(self) -> bool:
        return self.on_bad_file == "skip"

    @property
    def where(self) -> str:
        return f"data.path: {self.path}"


S = TypeVar("S", bound=Encoded, covariant=True)


@dataclass(frozen=True)
class Photographs(Generic[S]):
    """The sources of a data set, one for each part (sources/parts.py)."""

    train: S
    test: S | None
    validation: S | None


def sources_of(parts: Parts, source: Callable[[str], S]) -> Photographs[S]:
    """Make a source of each part that exists."""
    test, validation = (None if part is None else source(part) for part in (parts.test, parts.validation))
    return Photographs(source(parts.train), test, validation)


def photographs(sources: Photographs[Encoded], settings: PhotographSettings, request: Request) -> Data:
    """Return the pipelines of a data set of photographs."""
    central = CentralCrop(settings.image_size, settings.evaluation_resize)
    plain = Recipe(sources.train, central, NORMALISATION)
    window = RandomResizedCrop(settings.image_size)
    augmented = Recipe(sources.train, window, NORMALISATION) if settings.augment else plain
    test, validation = (
        None if source is None else Recipe(source, central, NORMALISATION)
        for source in (sources.test, sources.validation)
    )
    return assemble(augmented, plain, test, settings, request, validation)
