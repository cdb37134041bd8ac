"""Settings of data sets that lie at a path, with their classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.datasets.augmented import AugmentedSettings
from pipelines.settings import Classes
from pipelines.sources.class_list import MOST_CLASSES

if TYPE_CHECKING:
    from typing_extensions import Self


class StoredSettings(AugmentedSettings):
    """Settings of data at a path, which say how many classes there are."""

    path: PathText
    number_of_classes: Classes | None = None
    """Number of classes; read from the data if not given."""

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
    def where(self) -> str:
        return f"data.path: {self.path}"
