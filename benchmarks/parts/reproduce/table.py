"""The JSON of a table: every run, with its settings and where and with what it was made."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import record
from benchmarks.harness.record import Result
from benchmarks.parts.reproduce.jobs import Job, is_made_by
from benchmarks.parts.reproduce.recipe import Config
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.files import write_whole
from dynsparse.training.run import names
from pipelines.common.files import read_text

_OF_RUN = {"method", "sparsity", "seed", "settings", "weight_digest", "test_top1", "parameters", "seconds"}
"""Facts that every run has."""
MOVING = ("dsr", "sparse_momentum")
"""Methods that move weights between layers: the density of each layer is kept for every epoch."""


class Runs:
    """The runs of a table, by job. Kept in a JSON that is written anew, as a whole, after each run."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.settings: dict[str, Config] = {}
        self._runs: dict[tuple[str, float, int], Result] = {}

    @classmethod
    def read(cls, data: str, path: Path) -> Runs:
        """Read a table; an empty one where there is no file, or one of old that cannot be added to.

        Raises UserError for that of other data.
        """
        runs = cls(data)
        if path.exists() and "settings" in _content(path):
            runs.add_all(read(path), path)
        return runs

    def add_all(self, content: Result, path: Path) -> None:
        """Add the runs of another JSON. Raises UserError where both have a job with different results."""
        if content["data"] != self.data:
            raise UserError(f"{path} has runs on {content['data']}, not on {self.data}")
        for run in content["runs"]:
            there = self._runs.get(_place(run))
            if there is not None and (there["settings"], there["weight_digest"]) != (
                run["settings"],
                run["weight_digest"],
            ):
                raise UserError(f"{path}: its run {Job(*_place(run)).name} is another than the one that is there")
            self.add(run, content["settings"][run["settings"]])

    def has(self, job: Job, config: RunConfig) -> bool:
        """Return whether the job is done with the settings of its config, by whatever version."""
        run = self._runs.get((job.method, job.sparsity, job.seed))
        return run is not None and is_made_by(config, self.settings[run["settings"]])

    def add(self, run: Result, settings: Config) -> None:
        """Add a run, or replace that of the same job."""
        self._runs[_place(run)] = run
        self.settings[run["settings"]] = settings

    def __iter__(self) -> Iterator[Result]:
        return iter(self._runs.values())

    def content(self, order: Sequence[str]) -> Result:
        """Return what the JSON holds: settings that are in use, and runs by method, sparsity, seed."""
        runs = sorted(self, key=lambda run: (order.index(run["method"]), run["sparsity"], run["seed"]))
        used = {run["settings"] for run in runs}
        return {
            "data": self.data,
            "results": described(runs),
            "settings": {key: self.settings[key] for key in sorted(used)},
            "runs": runs,
        }


def read(path: Path) -> Result:
    """Read a table. Raises UserError if there is none, or not all of one."""
    content = _content(path)
    if "settings" not in content:
        raise UserError(f"{path} is of an earlier version; make the table anew")
    if not all(run.keys() >= _OF_RUN and run["settings"] in content["settings"] for run in content["runs"]):
        raise _no_table(path)
    return content


def _content(path: Path) -> Result:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no JSON"
        raise UserError(f"{path} cannot be read ({reason}); give the JSON of a table") from None
    kinds = {"data": str, "runs": list}
    if not isinstance(content, dict) or not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        raise _no_table(path)
    if not all(isinstance(run, dict) for run in content["runs"]):
        raise _no_table(path)
    return content


def _no_table(path: Path) -> UserError:
    return UserError(f"{path} holds no table of runs; give the JSON that benchmarks.reproduce wrote")


def _place(run: Mapping[str, Any]) -> tuple[str, float, int]:
    return run["method"], run["sparsity"], run["seed"]


def write(content: Result, path: Path) -> None:
    """Write a table, a line for each run and for each settings, so that a difference can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, value in content.items():
        if isinstance(value, list):
            lines = ",\n".join(f"    {json.dumps(item)}" for item in value)
            parts.append(f"  {json.dumps(name)}: [\n{lines}\n  ]")
        elif isinstance(value, dict):
            lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            parts.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
        else:
            parts.append(f"  {json.dumps(name)}: {json.dumps(value)}")
    write_whole(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def is_done(folder: Path) -> bool:
    """Return whether a run's folder is that of a finished run."""
    try:
        return bool(json.loads((folder / names.SUMMARY).read_text())["status"] == "done")
    except (OSError, ValueError, KeyError):
        return False


def run_of(folder: Path, job: Job, settings: str) -> Result:
    """Return the record of a finished run. Accuracies are in percent, by epoch; densities are of each layer."""
    summary = json.loads((folder / names.SUMMARY).read_text())
    lines = (json.loads(line) for line in (folder / names.METRICS).read_text().splitlines())
    epochs = [line for line in lines if line["kind"] == "epoch"]
    made = record.described("reproduce", {})
    of = "ema_" if summary.get("best_by") == "ema" else ""  # The network that is meant, where there are two.
    return {
        "method": job.method,
        "sparsity": job.sparsity,
        "seed": job.seed,
        "settings": settings,
        "test_top1": round(summary[f"{of}test_top1"], 4),
        "accuracy": [round(line[f"{of}test_top1"], 2) for line in epochs],
        "active_weights": summary["active_weights"],
        "parameters": summary["total_parameters"] - summary["sparse_layer_weights"] + summary["active_weights"],
        "layers": {name: round(1 - layer["sparsity_after"], 6) for name, layer in summary["layers"].items()},
        "dead_outputs": {name: n for name, layer in summary["layers"].items() if (n := layer.get("dead_outputs"))},
        **({"densities": _densities(epochs)} if job.method in MOVING else {}),
        "flops": {part: summary.get(f"{part}_flops_of_dense") for part in ("inference", "training")},
        "peak_memory": summary.get("peak_memory"),
        "ever_active": summary.get("ever_active"),
        "reallocations": summary["reallocations"],
        "weight_digest": summary["weight_digest"],
        "mask_digest": summary["mask_digest"],
        "seconds": round(summary["seconds"]),
        "commit": made["commit"],
        "processor": made["machine"]["processor"],
        "versions": summary["versions"],
    }


def _densities(epochs: Iterable[Result]) -> dict[str, list[float]]:
    """Return the density of each layer at the end of each epoch."""
    found: dict[str, list[float]] = {}
    for line in epochs:
        for name, layer in line["layers"].items():
            found.setdefault(name, []).append(round(1 - layer["sparsity"], 5))
    return found


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def described(runs: Sequence[Result]) -> list[Result]:
    """Mean and standard deviation over the seeds, for each method and sparsity."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["sparsity"]), []).append(run)
    rows = []
    for (method, sparsity), members in groups.items():
        values = [member["test_top1"] for member in members]
        row = {"method": method, "sparsity": sparsity, "seeds": len(values), "mean": statistics.mean(values)}
        row["sd"] = deviation(values)
        rows.append({**row, "parameters": members[0]["parameters"]})
    return rows


def unreached(runs: Sequence[Result]) -> dict[float, dict[str, list[Result]]]:
    """Return accuracies and the classes that no weight reaches, seed by seed, by sparsity and method.

    A sparsity at which all classes of all runs are reached is left out, and so are runs that have not counted.
    """
    found: dict[float, dict[str, list[Result]]] = {}
    for run in sorted(runs, key=lambda run: (run["sparsity"], run["seed"])):
        if run["sparsity"] and "dead_outputs" in run:
            classes = run["dead_outputs"].get(list(run["layers"])[-1], 0)
            of_method = found.setdefault(run["sparsity"], {}).setdefault(run["method"], [])
            of_method.append({"test_top1": run["test_top1"], "classes": classes})
    return {
        sparsity: methods
        for sparsity, methods in found.items()
        if any(run["classes"] for of_method in methods.values() for run in of_method)
    }
