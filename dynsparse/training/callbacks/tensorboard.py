"""TensorBoard: curves, the sparsity of each layer, what each reallocation moved."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import (
    EpochReport,
    LogWriter,
    RunReport,
    SamplesReport,
    ShrinkReport,
    StepReport,
)
from dynsparse.training.callbacks.event_file import EventFile
from dynsparse.training.callbacks.scalars import Scalars, Values

# One chart with a line a layer, in TensorBoard's "Custom Scalars" tab.
LAYOUT = {
    "Where the weights are": {
        "sparsity of each layer": ["Multiline", [r"^sparsity/layers/.*"]],
        "active weights of each layer": ["Multiline", [r"^active/layers/.*"]],
        "positions ever active": ["Multiline", [r"^exploration/.*"]],
        "outputs without weights": ["Multiline", [r"^dead_outputs/.*"]],
        "all weights: sparsity, ever active": ["Multiline", [r"^sparsity/(sparse_layers|model|ever_active)$"]],
    },
    "How it learns": {
        "loss": ["Multiline", [r"^loss/(train|(ema_)?(test|validation))$"]],
        "top-1 accuracy, %": ["Multiline", [r"^accuracy/.*_top1$"]],
        "learning rate": ["Multiline", [r"^lr$"]],
    },
    "What reallocation moves": {
        "dropped in each layer": ["Multiline", [r"^dropped/.*"]],
        "grown in each layer": ["Multiline", [r"^grown/.*"]],
        "what it decides by": ["Multiline", [r"^reallocation/(?!dropped$|grown$|seconds$|repaired$).*"]],
    },
    "What it costs, what goes wrong": {
        "FLOPs, x of dense": ["Multiline", [r"^flops/(inference|training)_of_dense$"]],
        "FLOPs of each layer": ["Multiline", [r"^flops/layers/.*"]],
        "images per second": ["Multiline", [r"^throughput/.*"]],
        "bytes to the all-reduce in a step": ["Multiline", [r"^communication/.*"]],
        "seconds of a reallocation": ["Multiline", [r"^reallocation/seconds$"]],
        "steps skipped, bad files": ["Multiline", [r"^(loss/skipped_steps|data/bad_files)$"]],
        "layers repaired": ["Multiline", [r"^reallocation/repaired$"]],
        "workers": ["Multiline", [r"^run/workers$"]],
    },
}

_DRAWABLE = 1e20
"""TensorBoard's histograms reach no further, and fail if all values lie beyond."""


class _SummaryWriter(SummaryWriter):
    """torch's writer, which makes events of values, with a file of ours for them.

    Its own file takes a thread, which dies for good when it cannot write.
    """

    def __init__(self, events: EventFile, purge_step: int | None) -> None:
        self._events = events
        super().__init__(str(events.path.parent), purge_step=purge_step)

    def _get_file_writer(self) -> EventFile:
        if self.file_writer is None:
            self.file_writer = self._events  # type: ignore[assignment]
            self.all_writers = {self.log_dir: self._events}  # type: ignore[assignment]
            if self.purge_step is not None:
                self._events.begin_anew(self.purge_step)
        return self._events


class TensorBoard(LogWriter):
    """Writes events to the run's folder, by step; a resume hides what was written after its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._events = EventFile(folder)
        super().__init__(self._events.records)

    def on_start(self, run: RunReport) -> None:
        self._writer = _SummaryWriter(self._events, purge_step=run.start_step + 1 if run.resumed else None)
        self._scalars = Scalars(run)
        for step, values in self._scalars.of_start(run):
            self._add(values, step)
        # At each start: a run may resume in another folder, or with a config that has changed.
        self._writer.add_custom_scalars(LAYOUT)
        text = "".join(f"    {line}\n" for line in run.config_yaml.splitlines())
        self._writer.add_text("config", text, run.start_step)

    def on_samples(self, report: SamplesReport) -> None:
        self._writer.add_image("data/first_batch", report.picture, 0)

    def on_step(self, report: StepReport) -> None:
        self._add(self._scalars.of_step(report), report.step)

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._add(self._scalars.of_reallocation(report), report.step)

    def on_shrink(self, report: ShrinkReport) -> None:
        self._add(self._scalars.of_shrink(report), report.step)

    def on_epoch(self, report: EpochReport) -> None:
        self._add(self._scalars.of_epoch(report), report.step)
        for name, values in report.active_weights.items():
            drawable = values[values.abs() < _DRAWABLE]
            if drawable.numel():
                self._writer.add_histogram(f"active_weights/{name}", drawable, report.step)

    def _add(self, values: Values, step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
