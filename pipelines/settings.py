"""The settings that every data set has. Those of one data set stand beside its code, in `datasets/`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipelines.common.errors import UserError
from pipelines.common.extras import DALI
from pipelines.common.settings import Count, Settings
from pipelines.decoding import BY_DEFAULT, Decoding
from pipelines.images.encoded import MOST_PIXELS
from pipelines.pixels.recipe import NO_PIXELS, Pixels
from pipelines.sources.class_list import MOST_CLASSES

if TYPE_CHECKING:
    from typing_extensions import Self

Side = Annotated[int, Field(ge=1, le=8192)]
"""Height, width or channels of an image."""
Classes = Annotated[int, Field(ge=2, le=MOST_CLASSES)]


class DataSetSettings(Settings):
    """Base of each data set's settings; `name` selects the data set in a config."""

    crops: ClassVar[bool] = False
    """True for a data set that crops its images to a size, which may change while training (`train.image_size`)."""
    in_memory: ClassVar[bool] = False
    """True for a data set that is read once, at the start, into `Arrays`: the loader `resident` can keep it."""

    name: str
    loader: Literal["dali", "torch", "resident"] = "dali"
    """Who reads and transforms: NVIDIA DALI, or torch's DataLoader where DALI does not install. `resident` keeps a data
    set that is held in memory where the network is, on the GPU if there is one."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """DALI's CPU threads in each worker; with the torch loader processes."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the images that the network gets. Half precision is for autocast (`train.precision`)."""
    validation_samples: Count = 0
    """Training samples held out, class by class, to choose the best epoch by; they are not trained on."""
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed that draws them: apart from the run's seed so that runs can share the split."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the pipelines deliver."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """Number of classes. Raises UserError if it must be read from the data, and has not been (`resolved`)."""
        raise NotImplementedError

    def resolved(self) -> Self:
        """Return settings that are filled in from the data. Raises UserError if the data cannot be read."""
        return self

    @property
    def pixels(self) -> Pixels:
        """Operations on the pixels of training views; none unless the settings have options for them."""
        return NO_PIXELS

    @property
    def repeats(self) -> int:
        """Times that each sample of a global batch appears in it."""
        return 1

    def without_repeats(self) -> Self:
        """Return settings by which each sample appears once."""
        return self

    @property
    def pixel_limit(self) -> int:
        """Pixels of the largest image that is decoded."""
        return MOST_PIXELS

    @property
    def decoding(self) -> Decoding:
        """The place where images are decoded in a run on GPUs."""
        return BY_DEFAULT

    @property
    def skips_bad_files(self) -> bool:
        """True if training continues without files that cannot be read or decoded."""
        return False

    @property
    def where(self) -> str:
        """Setting and value that say where the data are, for messages."""
        return f"data.name: {self.name}"

    def require_loader(self) -> None:
        """Raise UserError if the loader is not installed, or cannot serve the data set."""
        if self.loader == "resident" and not self.in_memory:
            raise UserError(f"data.loader is resident, but {self.where} is not held in memory; use dali or torch")
        # The package above it is looked for first: find_spec imports that.
        if self.loader == "dali" and (find_spec("nvidia") is None or find_spec("nvidia.dali") is None):
            raise UserError(
                f"data.loader is dali, which is not installed here; on Linux pip install --constraint constraints.txt "
                f"{DALI}, or set data.loader=torch"
            )
