"""Makes the runs of a table that are not done yet, and adds each to the JSON as it ends."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pipelines
from benchmarks.parts.reproduce import table
from benchmarks.parts.reproduce.jobs import NEEDED, Job, Table
from benchmarks.parts.reproduce.recipes import RECIPES
from benchmarks.parts.reproduce.running import run_all
from dynsparse.training.run import names


class Making:
    """A table that is made: its runs in folders, and the JSON that they are added to."""

    def __init__(self, of: Table, path: Path) -> None:
        self.of, self.path = of, path

    def make(self, jobs: Sequence[Job], at_once: int) -> list[Job]:
        """Make those of the jobs that are not done, and what they need. Returns those that failed."""
        for job in jobs:
            self.of.config(job)  # A bad override is told before anything is trained.
        self.of.work.mkdir(parents=True, exist_ok=True)
        to_do = self.not_done(jobs)
        if to_do:
            pipelines.check(self.of.config(to_do[0]).data.resolved())  # Once: not in each run's own log.
        return run_all([*self.needed_by(to_do), *to_do], self.prepare, self.done, at_once=at_once)

    def not_done(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that are still to run. Adds those that are done to the JSON."""
        recorded, found = table.Runs.read(self.of, self.path), []
        for job in jobs:
            if recorded.has(job):
                continue
            if table.is_done(self.of.folder(job)):
                self.done(job)
            else:
                found.append(job)
        return found

    def needed_by(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the runs to make first. One that is done and whose weights are gone is made again."""
        needed = {job.needs for job in jobs if job.needs is not None} - set(jobs)
        gone = sorted((job for job in needed if not table.has_weights(self.of.folder(job))), key=lambda job: job.seed)
        for job in gone:
            if table.is_done(self.of.folder(job)):
                shutil.rmtree(self.of.folder(job))
        return gone

    def prepare(self, job: Job) -> Path:
        """Write a job's config beside its folder. Returns its path."""
        config = self.of.config(job)
        file = config.folder.with_name(f"{config.folder.name}.yaml")
        file.write_text(config.as_yaml())
        return file

    def done(self, job: Job) -> None:
        """Add a finished run to the JSON. Of its checkpoints only those that other runs need are kept."""
        folder, made = self.of.folder(job), table.made_in(self.of, job)
        table.added(self.of, self.path, [(made, folder)])
        if not is_needed(job, self.of.data):
            shutil.rmtree(folder / names.CHECKPOINTS, ignore_errors=True)
        (run,) = made["runs"]
        print(f"{job.name:28} {run['test_top1']:.2f} %  {run['seconds']} s", flush=True)


def is_needed(job: Job, data: str) -> bool:
    """Return whether a row of the recipe needs this run, be that row made now or in a later call."""
    return job.sparsity == 0 and any(NEEDED.get(method) == job.method for method in RECIPES[data].seeds)
