"""A list of experiments with its options: the command line, config, state and needs of each job."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dynsparse import files
from dynsparse.cli.experiments import launching
from dynsparse.cli.experiments.jobs import Job
from dynsparse.cli.paper.draft import MODES
from dynsparse.cli.paper.flags import FLAGS, add_flags, flag_named
from dynsparse.cli.paper.kinds import MLP, WRN
from dynsparse.cli.paper.translate import translate
from dynsparse.cli.resuming import read_resume
from dynsparse.config.overrides import look, merge, overlap
from dynsparse.config.schema import RunConfig
from dynsparse.errors import EXIT_DONE, UserError
from dynsparse.training.run import names
from pipelines.common.command_line import Parser
from pipelines.common.paths import expanded

_SOURCES = ("--resume", "--copy-mask-from")


@dataclass(frozen=True)
class Options:
    """Further arguments for dist_train.py, the same for all jobs."""

    flags: Sequence[str] = ()
    overrides: Sequence[str] = ()
    dry_run: bool = False
    overwrite: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str], *, dry_run: bool) -> Options:
        """Parse flags of the paper's code, section.key=value, --overwrite and --dry-run."""
        parsed = _parser().parse_intermixed_args(list(arguments))
        taken = {*parsed.overrides, "--overwrite", "--dry-run"}
        flags = [word for word in arguments if word not in taken]
        return cls(flags, parsed.overrides, dry_run or parsed.dry_run, parsed.overwrite)

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return _path(self._runs)

    @property
    def _runs(self) -> str:
        return str(look(merge({}, self.overrides)[0], "runs") or "runs")

    def path(self, source: str) -> str:
        """Return the path of a run that a list names, in the folder of all runs."""
        path = Path(source)
        return str(Path(self._runs) / path.relative_to("runs")) if path.parts[:1] == ("runs",) else source


@dataclass
class Experiments:
    """A list with the options of its jobs."""

    path: str
    jobs: Mapping[int, Job]
    options: Options
    _configs: dict[int, RunConfig] = field(default_factory=dict)

    def arguments(self, job: Job) -> list[str]:
        """Return the arguments for dist_train.py. Overrides replace the list's flags for their keys."""
        words: list[str] = []
        for name, text in job.flags.items():
            if not any(overlap(override, key_of(name)) for override in self.options.overrides):
                value = self.options.path(text) if text is not None and name in _SOURCES else text
                words += [name] if value is None else [name, value]
        words += [*self.options.flags, *self.options.overrides]
        if self.options.dry_run:
            return [*words, "--dry-run"]
        return [*words, *(["--overwrite"] if self.options.overwrite else ["--resume", "auto"])]

    def config(self, job: Job) -> RunConfig:
        """Return the valid config. Raises UserError, which names the job."""
        if job.number in self._configs:
            return self._configs[job.number]
        parser = _parser()
        parser.add_argument("--resume", action="append")
        try:
            asked = parser.parse_intermixed_args(self.arguments(job))
            config = translate(asked, read_resume(asked), None, "command line").config
        except UserError as error:
            raise UserError(*(f"{self.path}: job {job.number}: {line}" for line in error.lines)) from None
        if config.run_name != job.run_name:
            raise UserError(
                f"job {job.number} would be {config.run_name}; it must be {job.run_name}: set runs= instead"
            )
        self._configs[job.number] = config
        return config

    def is_done(self, job: Job) -> bool:
        """Return whether the job has come to its end."""
        return _status(self.config(job).folder / names.SUMMARY) == "done"

    def state(self, job: Job) -> str:
        """Return how far the job is: done, part done, or not begun."""
        if self.is_done(job):
            return "done"
        folder = self.config(job).folder
        try:
            return "part done" if any(folder.glob(f"{names.CHECKPOINTS}/{names.STEPS}")) else "not begun"
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); set runs=") from None

    def taken(self, job: Job) -> object:
        """Return what changes each time that a start takes the job's folder."""
        try:
            status = os.stat(self.config(job).folder / names.CONFIG)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def needs(self, job: Job) -> dict[str, bool]:
        """Return the jobs and runs that must be done first, and whether each is."""
        by_name = {other.run_name: other for other in self.jobs.values()}
        needs: dict[str, bool] = {}
        for path in (_path(self.options.path(job.flags[name] or "")) for name in _SOURCES if name in job.flags):
            run = path.with_name(path.name.removesuffix("_initial"))
            other = by_name.get(run.name) if run.parent == self.options.runs else None
            if other is None:
                needs[str(run)] = os.path.exists(run)
            else:
                needs[f"job {other.number}"] = self.state(other) == "done"
        return needs

    def apart(self, job: Job) -> list[str]:
        """Return the flags that set the job apart in its group, less those that the table shows anyway."""
        group = [other.flags for other in self.jobs.values() if other.group == job.group]
        said = {flag.name for flag in FLAGS if "sparsity" in flag.name} | {"--job-idx", "--name", *_SOURCES}
        return [
            f"{name[2:]} {text}"
            for name, text in job.flags.items()
            if name not in said and any(flags.get(name) != text for flags in group)
        ]

    def run(self, job: Job, launcher: Sequence[str]) -> int:
        """Run a job to its end, from where it was stopped, and return the exit code. Skips a job that is done."""
        options = self.options
        folder = self.config(job).folder
        if not options.dry_run:
            if not options.overwrite and self.state(job) == "done":
                print(f"job {job.number}: done already, see {folder}; -- --overwrite runs it anew", flush=True)
                return EXIT_DONE
            lacks = _lacking(self.needs(job))
            if lacks:
                raise UserError(f"job {job.number} needs {lacks} to be done; run that first")
        words = self.arguments(job)
        print(f"job {job.number}, {job.group}: dist_train.py {shlex.join(words)}", flush=True)
        return launching.launch([*launcher, "--", *words])

    def table(self) -> str:
        """Return a line a job: number, sparsity, state, needs, group, and what sets it apart in its group."""
        rows = [("job", "sparsity", "state", "needs", "group")]
        for job in self.jobs.values():
            needs, state = self.needs(job), self.state(job)
            lacks = _lacking(needs)
            shown = f"needs {lacks}" if lacks and state == "not begun" else state
            about = ", ".join([job.group, *self.apart(job)])
            rows.append((str(job.number), sparsity(self.config(job)), shown, ", ".join(needs), about))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
        ]
        return "\n".join(lines)


def _path(text: str) -> Path:
    """Return the path of a text. Raises UserError, as for a variable that is not set."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise UserError(f"command line: runs: {error}") from None


def _lacking(needs: Mapping[str, bool]) -> str:
    return " and ".join(name for name, there in needs.items() if not there)


def key_of(name: str) -> str:
    """Return the key that a flag sets; "" for one that sets several, or that changes how another works."""
    flag = flag_named(name)
    if name in MODES:
        return "method.name"
    return "start.weights_from" if flag is None else flag.key


def _parser() -> Parser:
    """Return a parser of what may follow --."""
    parser = Parser(prog="dist_train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    add_flags(parser)
    return parser


def sparsity(config: RunConfig) -> str:
    """Return the fraction of zeros in the sparse layers when training is over, as text."""
    end = config.method.final_sparsity(config.sparsity.shares)
    conv, fc = end["conv"], end["fc"]
    one = {WRN: conv, MLP: fc}.get(config.model.name, conv if conv == fc else None)
    return f"{conv:g}, fc {fc:g}" if one is None else f"{one:g}"


def _status(summary: Path) -> str | None:
    try:
        return str(files.json_object(files.read_bytes(summary))["status"])
    except (OSError, ValueError, KeyError):
        return None
