"""Numbers of each report under their tags: the same in TensorBoard, W&B and MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import EpochReport, RunReport, ShrinkReport, StepReport
from dynsparse.training.callbacks.records import (
    EPOCH_TAGS,
    STEP_TAGS,
    epoch_record,
    epoch_scalars,
    layer_scalars,
    reallocation_record,
    reallocation_scalars,
    shrink_scalars,
)

Values = dict[str, float]


class Scalars:
    """Values of a run's reports by tag."""

    def __init__(self, run: RunReport) -> None:
        self._weights = {layer.name: layer.weights for layer in run.layers}
        self._costs = run.costs

    def of_start(self, run: RunReport) -> Iterator[tuple[int, Values]]:
        """Return steps and values: the workers of each start, and the layers that a new run begins with."""
        yield run.start_step, {"run/workers": run.world_size}
        if not run.resumed:
            layers = {name: {"active": count} for name, count in run.active.items()}
            yield 0, {**dict(layer_scalars({"layers": layers}, self._weights)), **self._flops(run.active)}

    def of_step(self, report: StepReport) -> Values:
        """Return the values of a reading."""
        values = {tag: getattr(report, key) for key, tag in STEP_TAGS.items()}
        return {tag: value for tag, value in values.items() if value is not None}

    def of_reallocation(self, report: ReallocationReport) -> Values:
        """Return the values of a reallocation, its layers' among them."""
        record = reallocation_record(report)
        layers = dict(layer_scalars(record, self._weights))
        return {**dict(reallocation_scalars(record)), **layers, **self._flops(report.active)}

    def of_shrink(self, report: ShrinkReport) -> Values:
        """Return the sizes of a network that has lost channels."""
        self._costs = report.costs
        return dict(shrink_scalars(report))

    def _flops(self, active: Mapping[str, int]) -> Values:
        """Return what inference costs with so many active weights by layer. Tied layers cost as much as dense ones."""
        if self._costs is None or active.keys() != self._costs.layers.keys():
            return {}
        return {EPOCH_TAGS["inference_flops_of_dense"]: self._costs.inference(active) / self._costs.reference}

    def of_epoch(self, report: EpochReport) -> Values:
        """Return the values of an epoch, its layers' among them."""
        record = epoch_record(report)
        return {**dict(epoch_scalars(record)), **dict(layer_scalars(record, self._weights))}
