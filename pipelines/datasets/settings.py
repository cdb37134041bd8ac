"""The settings of each data set. Light to import: neither DALI nor any data is touched."""

from __future__ import annotations

from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.common.settings import AtLeast1, Count, Settings

if TYPE_CHECKING:
    from typing_extensions import Self

Side = Annotated[int, Field(ge=1, le=8192)]
"""Height, width or channels of an image."""
MOST_CLASSES = 1 << 20
Classes = Annotated[int, Field(ge=2, le=MOST_CLASSES)]
MOST_PIXELS = 60_000_000
"""Of an image, unless `data.most_pixels` says otherwise: nearly all photographs have fewer."""


class DataSetSettings(Settings):
    """Base of each data set's settings; `name` selects the data set in a config."""

    name: str
    loader: Literal["dali", "torch"] = "dali"
    """Who reads and transforms: NVIDIA DALI, or torch's DataLoader where DALI does not install."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """DALI's CPU threads in each worker; with the torch loader processes."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the images that the network gets. Half precision is for autocast (`train.precision`)."""
    validation_samples: Count = 0
    """Training samples held out, class by class, to choose the best epoch by; they are not trained on."""
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """What draws them: apart from the run's seed so that runs can share the split."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the pipelines deliver."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """Raises UserError where the number must be read from the data, and has not been (`resolved`)."""
        raise NotImplementedError

    def resolved(self) -> Self:
        """With what is to be read from the data put in. Raises UserError if it cannot be had."""
        return self

    @property
    def pixel_limit(self) -> int:
        """Pixels of the largest image that is decoded."""
        return MOST_PIXELS

    @property
    def skips_bad_files(self) -> bool:
        """Whether to go on without files that cannot be had."""
        return False

    @property
    def where(self) -> str:
        """Setting and value that say where the data are, for messages."""
        return f"data.name: {self.name}"

    def check(self) -> None:
        """Raise UserError if the data cannot be there. Before any process group or GPU is touched."""
        # The package above it is looked for first: find_spec imports that.
        if self.loader == "dali" and (find_spec("nvidia") is None or find_spec("nvidia.dali") is None):
            raise UserError(
                "data.loader is dali, which is not installed here; install nvidia-dali, or set data.loader=torch"
            )
        self.check_files()

    def check_files(self) -> None:
        """The same, for one data set."""


class Cifar10Settings(DataSetSettings):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in colour, in torchvision's folder layout."""

    name: Literal["cifar10"]
    path: PathText = "data/cifar10"
    """Folder that holds (or will hold) cifar-10-batches-py."""
    download: bool = False
    """Fetch the files if they are not there."""
    augment: bool = True
    """Train on random crops of the padded images, half of them mirrored; false trains on the images as they are."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, 32, 32)

    @property
    def classes(self) -> int:
        return 10

    def check_files(self) -> None:
        from pipelines.datasets.cifar10 import check_files

        check_files(self)


class DigitsSettings(DataSetSettings):
    """The 1,797 handwritten digits that ship with scikit-learn: 8x8 scans, upsampled in DALI."""

    name: Literal["digits"]
    image_size: Side = 28
    """Height and width to upsample to."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        return 10


class PhotographSettings(DataSetSettings):
    """What data sets of photographs of many sizes have in common."""

    path: PathText = "data/imagenet"
    """Folder that holds train and, to evaluate on, val (or valid, validation), test, or both."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """A file that cannot be read or decoded ends the run, or another of its class comes in its place."""
    most_pixels: AtLeast1 = MOST_PIXELS
    """An image that declares more, or a file of over four times as many bytes, is a bad file: nothing is decoded."""
    exclude: PathText | None = None
    """File with the names of samples to leave out, a line each, as `python -m pipelines scan` writes it."""
    augment: bool = True
    """Train on random resized crops, half of them mirrored; false trains on the images as evaluation sees them."""
    image_size: Side = 224
    """Height and width of the images that the network gets."""
    evaluation_resize: Side = 256
    """What an image's shorter side is resized to for evaluation, before the central crop. If it is not given, 256 of
    224 of `image_size`."""
    number_of_classes: Classes | None = None
    """Read from the data if not given."""

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
        """Those of the training data. Raises UserError if they cannot be read."""
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


class ImagenetSettings(PhotographSettings):
    """A folder of images, such as ImageNet: train/CLASS/*.jpg and val/CLASS/*.jpg (or png, webp, bmp, tiff)."""

    name: Literal["imagenet"]

    def count_classes(self) -> int:
        from pipelines.sources.image_folder import class_names
        from pipelines.sources.parts import TRAIN

        return len(class_names(Path(self.path) / TRAIN))

    def check_files(self) -> None:
        from pipelines.sources.excluded import Excluded
        from pipelines.sources.image_folder import check_folders

        check_folders(Path(self.path), self.classes, self.validation_samples)
        Excluded.read(self.exclude)


class MnistSettings(DataSetSettings):
    """MNIST: 60,000 training and 10,000 test images of 28x28, in torchvision's folder layout."""

    name: Literal["mnist"]
    path: PathText = "data/mnist"
    """Folder that holds (or will hold) MNIST/raw."""
    download: bool = False
    """Fetch the files if they are not there."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, 28, 28)

    @property
    def classes(self) -> int:
        return 10

    def check_files(self) -> None:
        from pipelines.datasets.mnist import check_files

        check_files(self)


class SyntheticSettings(DataSetSettings):
    """Learnable noise of any shape: each class is a random pattern, each sample that pattern plus noise."""

    name: Literal["synthetic"]
    shape: Annotated[list[Side], Field(min_length=3, max_length=3)] = [1, 28, 28]
    """Channels, height, width."""
    number_of_classes: Classes = 10
    samples: AtLeast1 = 1000
    """Training samples."""
    test_samples: AtLeast1 = 200
    noise: Annotated[float, Field(ge=0, le=1e6)] = 64.0
    """Standard deviation of the noise, in grey levels of 0 to 255."""

    @model_validator(mode="after")
    def _fits_into_memory(self) -> SyntheticSettings:
        values = (self.samples + self.test_samples + self.number_of_classes) * prod(self.shape)
        if values > 2**32:
            raise ValueError(
                f"samples, test_samples and number_of_classes of shape {self.shape} are {values:,} values in memory; "
                f"take fewer or smaller ones: {2**32:,} are the most"
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.shape
        return (channels, height, width)

    @property
    def classes(self) -> int:
        return self.number_of_classes


class WebdatasetSettings(PhotographSettings):
    """Photographs in WebDataset's tar shards (KEY.jpg and KEY.cls a sample), for storage that hates small files."""

    name: Literal["webdataset"]
    path: PathText = "data/shards"
    """Folder that holds the shards."""
    train_shards: str = "train/*.tar"
    """Shell pattern of the training shards, from `path` on."""
    val_shards: str | None = None
    """Those that choose the best epoch; without test_shards the test data. Neither given: val/*.tar or test/*.tar."""
    test_shards: str | None = None

    @model_validator(mode="after")
    def _parts_differ(self) -> WebdatasetSettings:
        given = [pattern for pattern in (self.train_shards, self.val_shards, self.test_shards) if pattern is not None]
        if len(set(given)) < len(given):
            raise ValueError(
                "train_shards, val_shards and test_shards name the same shards twice; "
                "what is trained on, or chosen by, tests nothing: give each its own"
            )
        return self

    def count_classes(self) -> int:
        from pipelines.sources.shards import count_classes

        return count_classes(Path(self.path), self.train_shards)

    def check_files(self) -> None:
        from pipelines.datasets.webdataset import check_shards
        from pipelines.sources.excluded import Excluded

        check_shards(self)
        Excluded.read(self.exclude)


DataSettings = Annotated[
    Cifar10Settings | DigitsSettings | ImagenetSettings | MnistSettings | SyntheticSettings | WebdatasetSettings,
    Field(discriminator="name"),
]
