"""The registry of data sets: a config's `data.name` selects one of these settings.

`pipelines.build` finds the pipelines in the module of the settings. To add a data set: one file beside this one, and
its settings in the union below (docs/adding-a-dataset.md).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.datasets.cifar10 import Cifar10Settings
from pipelines.datasets.digits import DigitsSettings
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.mnist import MnistSettings
from pipelines.datasets.parquet import ParquetSettings
from pipelines.datasets.small_images import SmallImagesSettings
from pipelines.datasets.synthetic import SyntheticSettings
from pipelines.datasets.webdataset import WebdatasetSettings

DataSettings = Annotated[
    Cifar10Settings
    | DigitsSettings
    | ImagenetSettings
    | MnistSettings
    | ParquetSettings
    | SmallImagesSettings
    | SyntheticSettings
    | WebdatasetSettings,
    Field(discriminator="name"),
]
