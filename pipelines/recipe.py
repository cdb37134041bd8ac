"""How samples become batches: what Python hands to DALI, and what DALI makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.base import Batch
from pipelines.order import Indices, Uniforms


@dataclass(frozen=True)
class Input:
    """One array of each sample that DALI is handed: its element type, dimensions and their letters."""

    dtype: types.DALIDataType
    ndim: int
    layout: str = ""


class Recipe(ABC):
    """A set of samples and how their images are made. All random numbers come from outside, none from DALI."""

    uniforms: ClassVar[int] = 0
    """Random numbers that a sample needs."""

    @property
    @abstractmethod
    def labels(self) -> NDArray[np.int64]:
        """int64 [samples]."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[Input, ...]:
        """What `read` returns of each sample."""

    @abstractmethod
    def read(self, indices: Indices, uniforms: Uniforms) -> tuple[Any, ...]:
        """A batch of each of `inputs`: an array [batch, ...], or a list of `batch` arrays.

        `uniforms` is float64 [batch, self.uniforms], in [0, 1).
        """

    @abstractmethod
    def images(self, *inputs: Any) -> Any:
        """DALI's graph: from the nodes of `inputs` to that of the images, float32 CHW, on the pipeline's device."""


def on_gpu() -> bool:
    """Whether the graph that is being defined ends on a GPU."""
    return Pipeline.current().device_id is not None


class Feed:
    """DALI's pipeline over a stream of samples. The stream may be endless; DALI reads it ahead."""

    def __init__(
        self,
        recipe: Recipe,
        stream: Iterator[tuple[Indices, Uniforms]],
        batch: int,
        threads: int,
        device_id: int | None,
    ) -> None:
        samples = ((*recipe.read(indices, uniforms), recipe.labels[indices]) for indices, uniforms in stream)
        self._pipeline: Pipeline = _graph(samples, recipe, batch_size=batch, num_threads=threads, device_id=device_id)
        self._pipeline.build()
        self._device_id = device_id

    def next(self) -> Batch:
        # On a GPU in the order of torch's stream: DALI then waits for neither, nor reuses memory too early.
        stream = None if self._device_id is None else torch.cuda.current_stream(self._device_id)
        images, labels = self._pipeline.run(stream)
        return _to_torch(images), _to_torch(labels)


def _to_torch(tensors: Any) -> torch.Tensor:
    """DALI's tensor list as a torch tensor, without a copy: DALI leaves the memory alone as long as it is held."""
    return torch.utils.dlpack.from_dlpack(tensors.as_tensor())


# exec_dynamic: outputs that live on while the next batch is made.
@pipeline_def(exec_dynamic=True)  # type: ignore[untyped-decorator]
def _graph(samples: Iterator[Any], recipe: Recipe) -> Any:
    kinds = (*recipe.inputs, Input(types.INT64, ndim=0))
    *inputs, labels = fn.external_source(
        source=samples,
        num_outputs=len(kinds),
        batch=True,
        dtype=[kind.dtype for kind in kinds],
        ndim=[kind.ndim for kind in kinds],
        layout=[kind.layout for kind in kinds],
    )
    return recipe.images(*inputs), labels.gpu() if on_gpu() else labels
