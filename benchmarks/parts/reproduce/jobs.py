"""The jobs of a table: one run each, with the config that makes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts.reproduce.recipe import Config, merged
from benchmarks.parts.reproduce.recipes import RECIPES, settings_of
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig

PLACES = {"name", "runs", "seed", "log", "checkpoint"}
"""Sections that change nothing of what is learnt, and the seed, which a job says."""
PLACES_OF_DATA = {"path", "threads", "download"}


@dataclass(frozen=True)
class Job:
    """A run of a table. Sparsity is 0 for the dense network."""

    method: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """Short name, such as "dsr_0.98_0"."""
        return f"{self.method}_{self.sparsity:g}_{self.seed}"

    @property
    def needs(self) -> Job | None:
        """The run whose weights this one starts from, or learns from."""
        needed = {"pruning": "dense", "teacher": "base"}.get(self.method)
        return None if needed is None else Job(needed, 0.0, self.seed)


def dense(seed: int) -> Job:
    return Job("dense", 0.0, seed)


@dataclass(frozen=True)
class Table:
    """The settings that all jobs of a table share."""

    data: str
    work: Path
    """Folder of the runs."""
    overrides: tuple[str, ...] = ()
    epochs: int | None = None
    """Epochs instead of the recipe's, for a quick look."""

    def folder(self, job: Job) -> Path:
        """Return the folder of a job's run. Other settings have another folder."""
        return self.config(job).folder

    def config(self, job: Job) -> RunConfig:
        """Return the config of a job. Raises UserError for overrides that do not fit."""
        recipe = RECIPES[self.data]
        needed = self.folder(job.needs) if job.needs else Path()
        raw = merged(recipe.base, {"sparsity": recipe.sparsity(job.sparsity), "log": {"tensorboard": False}})
        raw = merged(raw, settings_of(job.method, recipe, job.sparsity, needed))
        if self.epochs is not None:
            raw = merged(raw, shortened(raw, self.epochs))
        raw |= {"seed": job.seed, "runs": str(self.work), "name": job.name}
        config = loading.parse(raw, self.overrides, source=f"{job.method} at {job.sparsity:g}")
        return config.model_copy(update={"name": f"{job.name}_{key(settings(config))}"})


def settings(config: RunConfig) -> Config:
    """Return what of a config decides the result, less the seed: equal for all seeds, wherever the files lie."""
    plain = config.model_dump(mode="json", exclude=PLACES)
    plain["data"] = {key: value for key, value in plain["data"].items() if key not in PLACES_OF_DATA}
    for section, key in ((plain["start"], "weights_from"), (plain["train"]["teacher"], "source")):
        if section is not None and section[key] is not None:
            section[key] = "the dense network of the same seed"
    return plain


def is_made_by(config: RunConfig, recorded: Config) -> bool:
    """Return whether recorded `settings` are a config's. Options that came later must be at their defaults."""
    changed = config.model_dump(mode="json", exclude=PLACES, exclude_defaults=True)
    return _same(recorded, json.loads(json.dumps(settings(config))), changed)


def _same(recorded: Any, now: Any, changed: Any) -> bool:
    """Compare recorded settings with those of now, given those of now that are not at their defaults."""
    if not (isinstance(recorded, dict) and isinstance(now, dict)) or any(key.isdigit() for key in {*recorded, *now}):
        return bool(recorded == now)  # By epoch: one value.
    changed = changed if isinstance(changed, dict) else {}
    if recorded.keys() - now.keys() or (now.keys() - recorded.keys()) & changed.keys():
        return False
    return all(_same(value, now[key], changed.get(key)) for key, value in recorded.items())


def key(settings: Config) -> str:
    """Return a short name of settings, the same in every process."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def shortened(raw: Config, epochs: int) -> Config:
    """Return settings of so few epochs that a test can try all methods."""
    shorter: Config = {"train": {"epochs": epochs}}
    return shorter | ({"method": {"iterations": epochs}} if raw["method"]["name"] == "pruning" else {})


def jobs(methods: Sequence[str], sparsities: Sequence[float], seeds: int | None, usual: dict[str, int]) -> list[Job]:
    """Return the jobs of a table: the dense networks first, then seed by seed, so that early figures have all columns.

    `seeds` for every method; None: those of `usual`, by method.
    """
    chosen = [method for method in usual if method in methods]
    counts = {method: usual[method] if seeds is None else seeds for method in chosen}
    found = [dense(seed) for seed in range(counts.pop("dense", 0))]
    for seed in range(max(counts.values(), default=0)):
        for sparsity in sparsities:
            found += [Job(method, sparsity, seed) for method, count in counts.items() if seed < count]
    return found
