"""Evaluation of all that a run has to evaluate: its network and the average of it, on each set of samples."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dynsparse.distributed import agreement
from dynsparse.training.ema import Ema
from dynsparse.training.engine import Engine
from dynsparse.training.evaluate import Evaluation, Evaluations, Tally, evaluate
from pipelines.base import Data, EvaluationPipeline


class Evaluator:
    """Evaluates a run's network with the mean BatchNorm statistics of all ranks. A collective on every rank."""

    def __init__(self, engine: Engine, ema: Ema | None, data: Data, stop_requested: Callable[[], bool]) -> None:
        self._engine, self._ema, self._data = engine, ema, data
        self._stop_requested = stop_requested

    def evaluate(self, tally: Tally | None = None) -> Evaluations:
        """Evaluate on the test samples and what else there is. Raises as `evaluate.evaluate`.

        `tally` sees the test samples, or those of validation where there are no others, through the network that
        chooses the best epoch.
        """
        engine, data = self._engine, self._data
        best_by = "model" if self._ema is None else self._ema.settings.best_by
        self.average_buffers()
        averaged = None if self._ema is None else self._average(self._ema, tally if best_by == "ema" else None)
        tally = tally if best_by == "model" else None
        test = self._on(data.test, engine.forward, tally)
        return Evaluations(
            test=test,
            validation=self._on(data.validation, engine.forward, tally if test is None else None),
            train=self._on(data.train_evaluation, engine.forward),
            ema=averaged,
            best_by=best_by,
        )

    def average_buffers(self) -> None:
        """Give all ranks the mean BatchNorm statistics, of the model and of the average of its weights."""
        engine = self._engine
        agreement.average_buffers(engine.model, but=engine.fixed)
        if self._ema is not None:
            twins = zip(self._ema.model.modules(), engine.model.modules(), strict=True)
            agreement.average_buffers(self._ema.model, but=[twin for twin, own in twins if own in engine.fixed])

    def _average(self, ema: Ema, tally: Tally | None) -> Evaluations:
        """Evaluate the average of the weights, likewise."""
        data = self._data
        test = self._on(data.test, ema.model, tally)
        return Evaluations(test=test, validation=self._on(data.validation, ema.model, tally if test is None else None))

    def _on(
        self, pipeline: EvaluationPipeline | None, model: nn.Module, tally: Tally | None = None
    ) -> Evaluation | None:
        if pipeline is None:
            return None
        engine = self._engine
        return evaluate(model, pipeline, engine.device, engine.forward_pass, self._stop_requested, tally)
