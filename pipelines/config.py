"""The settings of each data set. Light to import: neither DALI nor any data is touched."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Size = Annotated[int, Field(ge=1)]


class DataError(ValueError):
    """Data that cannot be used: value, rule and remedy on one line."""


class DataSetSettings(BaseModel):
    """Base of each data set's settings; `name` selects the data set in a config."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: str
    loader: Literal["dali", "torch"] = "dali"
    """Who reads and transforms: NVIDIA DALI, or torch's DataLoader where DALI does not install."""
    threads: Size = 2
    """DALI's CPU threads in each worker; with the torch loader processes."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the images that the network gets. Half precision is for autocast (`train.precision`)."""
    validation_samples: Annotated[int, Field(ge=0)] = 0
    """Training samples held out, class by class, to choose the best epoch by; they are not trained on."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """What draws them: apart from the run's seed so that runs can share the split."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the pipelines deliver."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        raise NotImplementedError

    @property
    def skips_bad_files(self) -> bool:
        """Whether to go on without files that cannot be had."""
        return False

    @property
    def where(self) -> str:
        """Setting and value that say where the data are, for messages."""
        return f"data.name: {self.name}"

    def check(self) -> None:
        """Raise DataError if the data cannot be there. Before any process group or GPU is touched."""
        # The package above it is looked for first: find_spec imports that.
        if self.loader == "dali" and (find_spec("nvidia") is None or find_spec("nvidia.dali") is None):
            raise DataError(
                "data.loader is dali, which is not installed here; install nvidia-dali, or set data.loader=torch"
            )
        self.check_files()

    def check_files(self) -> None:
        """The same, for one data set."""


class Cifar10Settings(DataSetSettings):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in colour, in torchvision's folder layout."""

    name: Literal["cifar10"]
    path: str = "data/cifar10"
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
        from pipelines.cifar10 import check_files

        if not self.download:
            check_files(self.path)


class DigitsSettings(DataSetSettings):
    """The 1,797 handwritten digits that ship with scikit-learn: 8x8 scans, upsampled in DALI."""

    name: Literal["digits"]
    image_size: Size = 28
    """Height and width to upsample to."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        return 10


class PhotographSettings(DataSetSettings):
    """What data sets of photographs of many sizes have in common."""

    path: str = "data/imagenet"
    """Folder that holds train and val."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """A file that cannot be read or decoded ends the run, or another of its class comes in its place."""
    exclude: str | None = None
    """File with the names of samples to leave out, a line each, as `python -m pipelines.scan` writes it."""
    augment: bool = True
    """Train on random resized crops, half of them mirrored; false trains on the images as evaluation sees them."""
    image_size: Size = 224
    """Height and width of the images that the network gets."""
    evaluation_resize: Size = 256
    """What an image's shorter side is resized to for evaluation, before the central crop."""
    number_of_classes: Annotated[int, Field(ge=2)] = 1000

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
        return self.number_of_classes

    @property
    def skips_bad_files(self) -> bool:
        return self.on_bad_file == "skip"

    @property
    def where(self) -> str:
        return f"data.path: {self.path}"


class ImagenetSettings(PhotographSettings):
    """A folder of images, such as ImageNet: train/CLASS/*.jpg and val/CLASS/*.jpg (or png, webp, bmp, tiff)."""

    name: Literal["imagenet"]

    def check_files(self) -> None:
        from pipelines.excluded import Excluded
        from pipelines.image_folder import check_folders

        check_folders(self.path, self.number_of_classes)
        Excluded.read(self.exclude)


class MnistSettings(DataSetSettings):
    """MNIST: 60,000 training and 10,000 test images of 28x28, in torchvision's folder layout."""

    name: Literal["mnist"]
    path: str = "data/mnist"
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
        from pipelines.mnist import check_files

        if not self.download:
            check_files(self.path)


class SyntheticSettings(DataSetSettings):
    """Learnable noise of any shape: each class is a random pattern, each sample that pattern plus noise."""

    name: Literal["synthetic"]
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)] = [1, 28, 28]
    """Channels, height, width."""
    number_of_classes: Annotated[int, Field(ge=2)] = 10
    samples: Size = 1000
    """Training samples."""
    test_samples: Size = 200
    noise: Annotated[float, Field(ge=0)] = 64.0
    """Standard deviation of the noise, in grey levels of 0 to 255."""

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
    path: str = "data/shards"
    """Folder that holds the shards."""
    train_shards: str = "train/*.tar"
    """Shell pattern of the training shards, from `path` on."""
    val_shards: str = "val/*.tar"

    def check_files(self) -> None:
        from pipelines.excluded import Excluded
        from pipelines.webdataset import check_shards

        check_shards(self)
        Excluded.read(self.exclude)


DataSettings = Annotated[
    Cifar10Settings | DigitsSettings | ImagenetSettings | MnistSettings | SyntheticSettings | WebdatasetSettings,
    Field(discriminator="name"),
]
