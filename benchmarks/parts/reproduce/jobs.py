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
from dynsparse.training.run import names

PLACES = {"name", "runs", "seed", "log", "checkpoint"}
"""Sections that change nothing of what is learnt, and the seed, which a job says."""
PLACES_OF_DATA = {"path", "threads", "download"}
OWN = {"seed", "name", "runs"}
"""Settings that the table itself gives each run."""
NEEDED = {"pruning": "dense", "teacher": "base"}
"""Rows that start from or learn from the dense network of another row, and that row."""
THAT_DENSE = "the dense network of the same seed"


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
        needed = NEEDED.get(self.method)
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

    @property
    def changes(self) -> list[str]:
        """Words of the command line that make other runs than the recipe does."""
        return [*([] if self.epochs is None else [f"--epochs={self.epochs}"]), *self.deciding]

    @property
    def deciding(self) -> list[str]:
        """Overrides that change what is learnt."""
        return [override for override in self.overrides if _decides(override)]

    def folder(self, job: Job) -> Path:
        """Return the folder of a job's run. Other settings have another folder."""
        return self.config(job).folder

    def config(self, job: Job) -> RunConfig:
        """Return the config of a job. Raises UserError for overrides that do not fit."""
        recipe, needed = RECIPES[self.data], self.needed(job)
        raw = merged(recipe.base, {"sparsity": recipe.sparsity(job.sparsity), "log": {"tensorboard": False}})
        raw = merged(raw, settings_of(job.method, recipe, job.sparsity, needed or Path()))
        if self.epochs is not None:
            raw = merged(raw, shortened(raw, self.epochs))
        raw |= {"seed": job.seed, "runs": str(self.work), "name": job.name}
        config = loading.parse(raw, self.overrides, source=f"{job.method} at {job.sparsity:g}")
        return config.model_copy(update={"name": self._name(job, settings(config, needed))})

    def _name(self, job: Job, plain: Config) -> str:
        """Return the name of a job's folder. A run that needs another is another one where that has other settings."""
        name = f"{job.name}_{key(plain)}"
        if job.needs is None or _began_from(self.work / name, self.folder(job.needs)):
            return name
        return f"{job.name}_{key({**plain, 'needs': self.settings(job.needs)})}"

    def needed(self, job: Job) -> Path | None:
        """Return the folder of the run that a job needs."""
        return self.folder(job.needs) if job.needs else None

    def settings(self, job: Job) -> Config:
        """Return what of a job's config decides its result."""
        return settings(self.config(job), self.needed(job))

    def makes(self, job: Job, recorded: Config, needed: Config | None = None) -> bool:
        """Return whether the job's config makes a run of recorded `settings`, by whatever version.

        `needed` is the settings of the run that it has begun from, where they were recorded.
        """
        if needed is not None and job.needs is not None and not self.makes(job.needs, needed):
            return False
        return is_made_by(self.config(job), recorded, self.needed(job))


def _began_from(folder: Path, needed: Path) -> bool:
    """Return whether a run of an earlier version, named by its settings alone, has used the weights in `needed`."""
    try:
        return needed.name in (folder / names.CONFIG).read_text()
    except OSError:
        return False


def _decides(override: str) -> bool:
    """Return whether an override, such as "train.epochs=3", changes what is learnt."""
    section, _, option = override.partition("=")[0].partition(".")
    return section not in PLACES and not (section == "data" and option in PLACES_OF_DATA)


def settings(config: RunConfig, needed: Path | None = None) -> Config:
    """Return what of a config decides the result, less the seed: equal for all seeds, wherever the files lie.

    `needed` is the folder of the dense network that the table itself names in it.
    """
    plain = config.model_dump(mode="json", exclude=PLACES)
    plain["data"] = {key: value for key, value in plain["data"].items() if key not in PLACES_OF_DATA}
    teacher, own = config.train.teacher, str(needed)
    if config.start.weights_from == own:
        plain["start"]["weights_from"] = THAT_DENSE
    if teacher is not None and teacher.source == own:
        plain["train"]["teacher"]["source"] = THAT_DENSE
    return plain


def is_made_by(config: RunConfig, recorded: Config, needed: Path | None = None) -> bool:
    """Return whether recorded `settings` are a config's. Options that came later must be at their defaults."""
    changed = config.model_dump(mode="json", exclude=PLACES, exclude_defaults=True)
    return _same(recorded, json.loads(json.dumps(settings(config, needed))), changed)


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
    prunes: Config = {"method": {"iterations": epochs, "every_epochs": 1}}
    return shorter | (prunes if raw["method"]["name"] == "pruning" else {})


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
