"""The JSON of a table: every run, with its settings and where and with what it was made."""

from __future__ import annotations

import fcntl
import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.harness.record import Result
from benchmarks.parts.reproduce import starts
from benchmarks.parts.reproduce.jobs import Job, Table, key
from benchmarks.parts.reproduce.recipe import Config
from benchmarks.parts.reproduce.recipes import RECIPES
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

    def __init__(self, of: Table) -> None:
        self.of, self.titles = of, list(RECIPES[of.data].titles)
        self.settings: dict[str, Config] = {}
        self._runs: dict[Job, Result] = {}
        self._made: dict[tuple[str, float, str, str | None], bool] = {}
        self._data: dict[str, Result] = {}
        """A run for each settings of the data."""

    @classmethod
    def read(cls, of: Table, path: Path) -> Runs:
        """Read a table; an empty one where there is no file. Raises UserError for a file that `add_all` refuses."""
        runs = cls(of)
        if path.exists():
            runs.add_all(read(path), path)
        return runs

    def add_all(self, content: Result, path: Path) -> None:
        """Add the runs of another table. Where both have a job, the first stays.

        Raises UserError for runs that cannot stand in this table: of other data, settings or rows.
        """
        if content["data"] != self.of.data:
            raise UserError(f"{path} has runs on {content['data']}, not on {self.of.data}; give another")
        ours, theirs = self.of.changes, of_content(content).changes
        if sorted(theirs) != sorted(ours):
            raise UserError(f"{path} has runs {_with(theirs)}, and these are runs {_with(ours)}; give another --out")
        for run in content["runs"]:
            if run["method"] not in self.titles:
                raise UserError(
                    f"{path} has a row '{run['method']}', which this version's {self.of.data} lacks; "
                    f"use the version that made it, or give another"
                )
            self._add(run, content["settings"], path)

    def _add(self, run: Result, settings: Mapping[str, Config], path: Path) -> None:
        job = job_of(run)
        there = self._runs.get(job)
        if there is None or (not self.has(job) and self._is_made(run, settings)):
            self._require_same_data(run, settings, path)
            self._runs[job] = run
            self.settings |= {key: settings[key] for key in _keys(run)}
        elif not self._are_same(there, run, settings):
            raise UserError(f"{path}: its run {job.name} has other settings than the one that is there; give another")
        elif there["weight_digest"] != run["weight_digest"]:
            print(f"{path}: its run {job.name} has other weights than the one that is there, which stays", flush=True)

    def _are_same(self, there: Result, run: Result, settings: Mapping[str, Config]) -> bool:
        """Return whether both have the same settings, apart from options that one of their versions lacks."""
        equal = self.settings[there["settings"]] == settings[run["settings"]]
        return equal or (self.has(job_of(run)) and self._is_made(run, settings))

    def _require_same_data(self, run: Result, settings: Mapping[str, Config], path: Path) -> None:
        """Raise UserError if a run with the same settings of its data had other data, as far as both tell."""
        of_run = settings[run["settings"]]
        if "data" not in run:
            return
        key = json.dumps([of_run["data"], of_run["train"]["global_batch_size"]], sort_keys=True)
        other = self._data.setdefault(key, run)
        if other["data"] != run["data"]:
            raise UserError(
                f"{path}: its run {job_of(run).name} is on other data than {job_of(other).name}, which is there; "
                f"give the same data.path, or another --out and --work"
            )

    def has(self, job: Job) -> bool:
        """Return whether the job is done with the settings of its config, by whatever version."""
        return job in self._runs and self._is_made(self._runs[job], self.settings)

    def _is_made(self, run: Result, settings: Mapping[str, Config]) -> bool:
        """Return whether the recipe makes a run, with the table's changes to it. No seed has settings of its own."""
        place = (run["method"], run["sparsity"], run["settings"], run.get("needs"))
        if place not in self._made:
            recorded, *needed = (settings[key] for key in _keys(run))
            try:
                self._made[place] = self.of.makes(Job(run["method"], run["sparsity"], 0), recorded, *needed)
            except UserError:  # The recipe has no such run.
                self._made[place] = False
        return self._made[place]

    def __iter__(self) -> Iterator[Result]:
        """Yield all runs by method, sparsity, seed: those too that the recipe no longer makes."""
        order = {method: place for place, method in enumerate(self.titles)}
        return iter(sorted(self._runs.values(), key=lambda run: (order[run["method"]], run["sparsity"], run["seed"])))

    @property
    def made(self) -> list[Result]:
        """The runs that the recipe makes."""
        return [run for run in self if self.has(job_of(run))]

    def content(self) -> Result:
        """Return what the JSON holds: settings that are in use, and all runs. Results are of those `made`."""
        used = {key for run in self for key in _keys(run)}
        return {
            **_changed(self.of),
            "results": described(self.made),
            "settings": {key: self.settings[key] for key in sorted(used)},
            "runs": list(self),
        }


def _keys(run: Result) -> list[str]:
    """Return the names of a run's settings, and of those of the run that it needed, where they were recorded."""
    return [run["settings"], *([run["needs"]] if "needs" in run else [])]


def _with(changes: Sequence[str]) -> str:
    return f"with {' '.join(changes)}" if changes else "of the recipe as it is"


def _changed(of: Table) -> Result:
    """Return the head of a table's JSON: its data, and what was changed in the recipe, if anything was."""
    changes = {"epochs": of.epochs, "overrides": of.deciding} if of.changes else {}
    return {"data": of.data, **changes}


def of_content(content: Result) -> Table:
    """Return the table that a JSON holds, for its configs: no folder of runs is known."""
    return Table(content["data"], Path("runs").absolute(), tuple(content.get("overrides", ())), content.get("epochs"))


def shown(content: Result, path: Path | None = None) -> list[Result]:
    """Return the runs of a JSON that the recipe makes, with the changes that the JSON records.

    Raises UserError, with the `path`, for a JSON that `Runs` refuses.
    """
    runs = Runs(of_content(content))
    runs.add_all(content, path or Path(f"reproduce_{content['data']}.json"))
    return runs.made


def added(of: Table, path: Path, others: Sequence[tuple[Result, Path]] = ()) -> Runs:
    """Add other tables to a JSON, which is read anew: another process may have written to it. Returns all runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        runs = Runs.read(of, path)
        for content, file in others:
            runs.add_all(content, file)
        write(runs.content(), path)
    return runs


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which leaves no file. Where a file system has no locks, go on without."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(path: Path) -> Result:
    """Read a table. Raises UserError if there is none, or not all of one."""
    content = _content(path)
    if "settings" not in content:
        raise UserError(f"{path} is of an earlier version, and cannot be added to; move it away, or give another --out")
    if not all(run.keys() >= _OF_RUN and content["settings"].keys() >= {*_keys(run)} for run in content["runs"]):
        raise _no_table(path)
    return content


def _content(path: Path) -> Result:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no JSON"
        raise UserError(f"{path} cannot be read ({reason}); give the JSON of a table") from None
    kinds: Mapping[str, Any] = {"data": str, "runs": list, "settings": dict, "overrides": list, "epochs": int | None}
    found = {"settings": {}, "overrides": [], "epochs": None, **content} if isinstance(content, dict) else {}
    if not all(name in found and isinstance(found[name], kind) for name, kind in kinds.items()):
        raise _no_table(path)
    if content["data"] not in RECIPES or not all(isinstance(run, dict) for run in content["runs"]):
        raise _no_table(path)
    return dict(content)


def _no_table(path: Path) -> UserError:
    return UserError(f"{path} holds no table of runs; give the JSON that benchmarks.reproduce wrote")


def job_of(run: Mapping[str, Any]) -> Job:
    """Return the job that made a run."""
    return Job(run["method"], run["sparsity"], run["seed"])


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


def has_weights(folder: Path) -> bool:
    """Return whether another run can begin from the weights of this finished run."""
    return is_done(folder) and (folder / names.CHECKPOINTS / names.LATEST).is_file()


def made_in(of: Table, job: Job) -> Result:
    """Return the table that a finished run is alone."""
    plain = {key(of.settings(one)): of.settings(one) for one in (job, job.needs) if one is not None}
    own, *needed = plain
    run = run_of(of.folder(job), job, own)
    return {**_changed(of), "settings": plain, "runs": [run | ({"needs": needed[0]} if needed else {})]}


def run_of(folder: Path, job: Job, settings: str) -> Result:
    """Return the record of a finished run. Accuracies are in percent, by epoch; densities are of each layer."""
    summary = json.loads((folder / names.SUMMARY).read_text())
    lines = (json.loads(line) for line in (folder / names.METRICS).read_text().splitlines())
    epochs = [line for line in lines if line["kind"] == "epoch"]
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
        **_data(folder, epochs),
        **starts.origin_of(folder, summary["versions"]),
    }


def _data(folder: Path, epochs: Sequence[Result]) -> Result:
    """Return what tells a run's data from others: steps of the first epoch, and a digest of what a network is told.

    Nothing for a run whose folder lacks that. Means and deviations of pixels are rounded: sums may differ in their last
    bits from one machine to the next.
    """
    if not (file := folder / names.INPUT).exists():
        return {}
    told = json.loads(file.read_text())
    told |= {name: [round(value, 1) for value in told[name]] for name in ("mean", "std") if told.get(name)}
    return {"data": {"first_epoch_steps": epochs[0]["step"], "input": key(told)}}


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

    The last layer of the network must be a sparse one. A sparsity at which all classes of all runs are reached is left
    out, and so are runs that have not counted.
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
