"""Tables with a column a run: what each came to, and what went wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dynsparse.tools.report.run import Run
from dynsparse.tools.report.words import NOTHING, count, duration, percent


@dataclass(frozen=True)
class Line:
    """A row: its head, and a cell for each run."""

    head: str
    cells: tuple[str, ...]
    best: tuple[bool, ...] = ()
    """Tells for each cell whether it is the best of a row in which more is better."""
    code: bool = False
    """Tells that cells are compared letter by letter, as digests are."""
    differs: bool = False


def overview(runs: Sequence[Run]) -> list[Line]:
    """Return the first table. Rows that no run has anything for are skipped."""
    lines = [
        _line(runs, "status", lambda run: run.status_in_words),
        _line(runs, "method", lambda run: run.setting("method", "name")),
        _line(runs, "network", lambda run: run.setting("model", "name")),
        _line(runs, "data", lambda run: run.setting("data", "name")),
        _accuracy(runs, "test top-1", "test_top1"),
        _accuracy(runs, "highest test top-1 of all epochs, chosen on the test data", "best_top1", "test"),
        _accuracy(runs, "test top-1 of the epoch best in validation", "test_top1_at_best", "validation"),
        _accuracy(runs, "best validation top-1", "best_top1", "validation"),
        _accuracy(runs, "validation top-1", "validation_top1"),
        _accuracy(runs, "test top-5", "test_top5"),
        _accuracy(runs, "test top-1 of the averaged weights", "ema_test_top1"),
        _accuracy(runs, "validation top-1 of the averaged weights", "ema_validation_top1"),
        _line(runs, "best epoch chosen by", _chosen_by),
        _line(runs, "accuracies measured after step", _measured_at),
        _line(runs, "sparsity of the sparse layers", lambda run: percent(fact(run, "sparsity"))),
        _line(runs, "sparsity of the whole model", lambda run: percent(fact(run, "model_sparsity"))),
        _line(runs, "active weights", lambda run: count(fact(run, "active_weights"))),
        _line(runs, "weights of the sparse layers", lambda run: count(_sparse_layer_weights(run))),
        _line(runs, "parameters in all", lambda run: count(fact(run, "total_parameters"))),
        _line(runs, "parameters that are left", _parameters_left),
        _line(runs, "weights ever active", lambda run: percent(fact(run, "ever_active"))),
        _line(runs, "outputs without a weight", lambda run: count(fact(run, "dead_outputs"))),
        _line(runs, "FLOPs of inference, x of dense", lambda run: _multiple(fact(run, "inference_flops_of_dense"))),
        _line(runs, "FLOPs of training, x of dense", lambda run: _multiple(fact(run, "training_flops_of_dense"))),
        _line(runs, "epochs", _epochs),
        _line(runs, "ended early", lambda run: (run.summary or {}).get("reason")),
        _line(runs, "steps", lambda run: count(_steps(run))),
        _line(runs, "reallocations", lambda run: count(run.reallocations)),
        _line(runs, "weights moved", _moved),
        _line(runs, "workers", _workers),
        _line(runs, "gradients between workers", lambda run: (run.summary or {}).get("gradients")),
        _line(runs, "images a second", lambda run: count(fact(run, "images_per_second"))),
        _line(runs, "most memory", lambda run: _memory(fact(run, "peak_memory"))),
        _line(runs, "time in training", lambda run: duration((run.summary or {}).get("seconds"))),
        _line(runs, "digest of the masks", lambda run: (run.summary or {}).get("mask_digest"), code=True),
        _line(runs, "digest of the weights", lambda run: (run.summary or {}).get("weight_digest"), code=True),
    ]
    return [line for line in lines if any(cell != NOTHING for cell in line.cells)]


def _parameters_left(run: Run) -> str | None:
    """Write the parameters of a network that has lost channels; None for others."""
    return count(run.metrics.shrinks[-1]["parameters"]) if run.metrics.shrinks else None


def _memory(found: float | None) -> str | None:
    """Write bytes in MB."""
    return None if found is None else f"{found / 1e6:,.0f} MB"


def fact(run: Run, key: str) -> float | None:
    """Return a number of the summary, or of the latest epoch of a run that has no summary yet."""
    value = (run.summary or {}).get(key)
    return run.latest(key) if value is None else float(value)


def _line(runs: Sequence[Run], head: str, cell: Callable[[Run], Any], *, code: bool = False) -> Line:
    values = [cell(run) for run in runs]
    return Line(head, tuple(NOTHING if value in (None, "") else str(value) for value in values), code=code)


def _accuracy(runs: Sequence[Run], head: str, key: str, chosen_on: str | None = None) -> Line:
    """Return a row of accuracies. `chosen_on` restricts it to runs whose best epoch was chosen on these samples."""
    values = [fact(run, key) if chosen_on in (None, _chosen_on(run)) else None for run in runs]
    known = [value for value in values if value is not None]
    best = tuple(len(known) > 1 and value == max(known) for value in values)
    return Line(head, tuple(NOTHING if value is None else f"{value:.2f} %" for value in values), best)


def _chosen_on(run: Run) -> str:
    """Return the samples that the best epoch was chosen on: "validation" or "test"."""
    return "test" if fact(run, "validation_top1") is None else "validation"


def _chosen_by(run: Run) -> str | None:
    """Return the network whose accuracy has chosen the best epoch, where it is not the model itself."""
    return "the averaged weights" if (run.summary or {}).get("best_by") == "ema" else None


def _measured_at(run: Run) -> str | None:
    """Return the step after which the accuracies were measured, where others came after it."""
    at = (run.summary or {}).get("evaluated_at")
    return None if at in (None, _steps(run)) else count(at)


def _multiple(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _sparse_layer_weights(run: Run) -> float | None:
    known = (run.summary or {}).get("sparse_layer_weights")
    return known if isinstance(known, int) else (sum(run.metrics.weights.values()) or None)


def _steps(run: Run) -> int:
    known = (run.summary or {}).get("steps")
    return known if isinstance(known, int) else run.metrics.last_step


def _epochs(run: Run) -> str:
    done = (run.summary or {}).get("epochs")
    if not isinstance(done, int):
        done = round(run.latest("epoch") or 0) + 1 if len(run.metrics.epochs) else 0
    of = run.setting("train", "epochs")
    return f"{done:,}" if of in (None, done) else f"{done:,} of {of:,}" if isinstance(of, int) else f"{done:,}"


def _moved(run: Run) -> str:
    told = run.metrics.moves.added
    number = count(sum(float(moves.grown.sum()) for moves in run.metrics.moves))
    return number if told == run.reallocations else f"{number} in {told:,} of them"


def _workers(run: Run) -> str:
    if run.history is not None and run.history.sessions:
        return ", then ".join(str(size) for size in run.history.world_sizes)
    return str((run.summary or {}).get("world_size", ""))


def faults(runs: Sequence[Run]) -> list[Line]:
    """Return the table of faults and of what was done about them."""

    def of_history(name: str) -> Callable[[Run], Any]:
        return lambda run: None if run.history is None else f"{getattr(run.history, name):,}"

    return [
        _line(runs, "starts", lambda run: None if run.history is None else len(run.history.sessions)),
        _line(runs, "of these resumed", of_history("resumes")),
        _line(runs, "died without an end", of_history("deaths")),
        _line(runs, "steps done twice", _lost_steps),
        _line(runs, "steps skipped", lambda run: count(fact(run, "skipped_steps"))),
        _line(runs, "bad files replaced", lambda run: count(fact(run, "bad_files"))),
        _line(runs, "differences between workers mended", _repairs),
    ]


def _lost_steps(run: Run) -> str | None:
    """Return the steps done twice. A session that died is known up to its last line of metrics."""
    if run.history is None:
        return None
    known = run.history.lost_steps
    if not run.history.deaths:
        return f"{known:,}"
    return f"at least {known:,}" if known else "not known"


def _repairs(run: Run) -> str:
    known = fact(run, "desyncs_repaired")
    names = ", ".join(f"{name} ({times} x)" for name, times in run.metrics.repaired.items())
    number = count(known if known is not None else sum(run.metrics.repaired.values()))
    return f"{number}: {names}" if names else number
