"""Lists of experiments: which jobs there are, how far they are, and running them one after another.

A list is a YAML file, such as those in configs/experiments/. A job is a command line of dist_train.py in the flags of
the paper's code, with a number, `job-idx`, and a `group`. launch/experiment.sh runs this module.
"""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from dynsparse import files
from dynsparse.cli.paper.flags import BOOLEAN, FLAGS, MLP, MODEL, TEXT, WRN, add_flags, flag_named
from dynsparse.cli.paper.translate import MODES, look, overlap, translate
from dynsparse.cli.resuming import read_resume
from dynsparse.config import schema
from dynsparse.config.reading import plain, read_file, text_of
from dynsparse.config.schema import RunConfig
from dynsparse.config.shipped import found
from dynsparse.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_STOPPED, UserError
from dynsparse.runtime import print_to_reader
from dynsparse.training.run import names
from pipelines.common import streams
from pipelines.common.command_line import Parser
from pipelines.common.paths import argument, expanded
from pipelines.common.settings import MOST
from pipelines.common.text import cut, nearest

LAUNCHER = Path(__file__).parents[2] / "launch" / "local.sh"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

_SOURCES = ("--resume", "--copy-mask-from")
_KEYS = ["group", "resume", *(name[2:] for flag in FLAGS for name in (flag.name, *flag.also) if name[:2] == "--")]


@dataclass(frozen=True)
class Job:
    """One entry of a list."""

    number: int
    group: str
    flags: Mapping[str, str | None]
    """Text of each flag by its name, such as "--epochs"; None for a switch."""

    @property
    def run_name(self) -> str:
        """The folder's name that others in the list know it by."""
        return self.flags.get("--name") or f"{self.flags.get('--model', MLP)}_{self.number}"


@dataclass(frozen=True)
class Options:
    """What is the same for all jobs: further arguments for dist_train.py."""

    flags: Sequence[str] = ()
    overrides: Sequence[str] = ()
    dry_run: bool = False
    overwrite: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str], *, dry_run: bool) -> Options:
        """Flags of the paper's code, section.key=value, --overwrite and --dry-run."""
        parsed = _parser().parse_intermixed_args(list(arguments))
        taken = {*parsed.overrides, "--overwrite", "--dry-run"}
        flags = [word for word in arguments if word not in taken]
        return cls(flags, parsed.overrides, dry_run or parsed.dry_run, parsed.overwrite)

    @property
    def runs(self) -> Path:
        """Where the runs are."""
        return _path(self._runs)

    @property
    def _runs(self) -> str:
        return str(look(schema.merge({}, self.overrides)[0], "runs") or "runs")

    def path(self, source: str) -> str:
        """A run that a list names, where the runs are, as a config has it."""
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
        """The command line of dist_train.py, without the program. Overrides replace the list's flags for their keys."""
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
        """The checked config. UserError names the job."""
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
        """Whether it has come to its end."""
        return _status(self.config(job).folder / names.SUMMARY) == "done"

    def state(self, job: Job) -> str:
        """How far it is: done, part done, or not begun."""
        if self.is_done(job):
            return "done"
        folder = self.config(job).folder
        return "part done" if any(folder.glob(f"{names.CHECKPOINTS}/{names.STEPS}")) else "not begun"

    def needs(self, job: Job) -> dict[str, bool]:
        """What has to be there first, jobs of the list or other runs, and whether it is."""
        by_name = {other.run_name: other for other in self.jobs.values()}
        needs: dict[str, bool] = {}
        for path in (_path(self.options.path(job.flags[name] or "")) for name in _SOURCES if name in job.flags):
            run = path.with_name(path.name.removesuffix("_initial"))
            other = by_name.get(run.name) if run.parent == self.options.runs else None
            if other is None:
                needs[str(run)] = run.exists()
            else:
                needs[f"job {other.number}"] = self.state(other) == "done"
        return needs

    def apart(self, job: Job) -> list[str]:
        """Flags that differ within the job's group, but for its sparsity and what it needs, which are said anyway."""
        group = [other.flags for other in self.jobs.values() if other.group == job.group]
        said = {flag.name for flag in FLAGS if "sparsity" in flag.name} | {"--job-idx", "--name", *_SOURCES}
        return [
            f"{name[2:]} {text}"
            for name, text in job.flags.items()
            if name not in said and any(flags.get(name) != text for flags in group)
        ]

    def run(self, job: Job, launcher: Sequence[str]) -> int:
        """Run a job to its end, going on where it was; one that is done is skipped. The exit code."""
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
        return launch([*launcher, "--", *words])

    def table(self) -> str:
        """A line a job: number, sparsity, state, what it needs, group, and what sets it apart in its group."""
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
    """UserError for a variable that is not set, and the like."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise UserError(f"command line: runs: {error}") from None


def _lacking(needs: Mapping[str, bool]) -> str:
    return " and ".join(name for name, there in needs.items() if not there)


def key_of(name: str) -> str:
    """The key that a flag is about; "" for one that is about several, or about how another works."""
    flag = flag_named(name)
    if name in MODES:
        return "method.name"
    return "start.weights_from" if flag is None else flag.key


def _parser() -> Parser:
    """Of what may follow --, as dist_train.py knows it."""
    parser = Parser(prog="dist_train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    add_flags(parser)
    return parser


def sparsity(config: RunConfig) -> str:
    """Share of zeros in the sparse layers, when training is over."""
    end = config.method.final_sparsity({"conv": config.sparsity.conv, "fc": config.sparsity.fc})
    conv, fc = end["conv"], end["fc"]
    one = {WRN: conv, MLP: fc}.get(config.model.name, conv if conv == fc else None)
    return f"{conv:g}, fc {fc:g}" if one is None else f"{one:g}"


def _status(summary: Path) -> str | None:
    try:
        return str(files.json_object(files.read_bytes(summary))["status"])
    except (OSError, ValueError, KeyError):
        return None


# -- reading ---------------------------------------------------------------------------------------


def read_jobs(path: str) -> dict[int, Job]:
    """The jobs of a list by number. UserError lists all that is wrong."""
    entries = read_file(found(path), "list", "configs/experiments/")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: holds no list of jobs; write '- {{job-idx: 0, model: ..., FLAG: VALUE}}' for each")
    jobs: dict[int, Job] = {}
    wrong: list[str] = []
    for place, entry in enumerate(entries, start=1):
        try:
            job = _read_job(entry, f"{path}: entry {place}")
        except UserError as error:
            wrong += error.lines
            continue
        if job.number in jobs:
            wrong.append(f"{path}: entry {place}: job-idx {job.number} is given twice; number the jobs apart")
        jobs[job.number] = job
    if wrong:
        raise UserError(*wrong)
    return jobs


def _is_text(key: object) -> bool:
    """Whether a key's value is a path or a name, so that a number there is text."""
    flag = flag_named(f"--{key}")
    return key in ("group", "resume") or (flag is not None and flag.kind in (MODEL, TEXT))


def _read_job(entry: Any, where: str) -> Job:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is no mapping; write '- {{job-idx: 0, model: ..., FLAG: VALUE}}'")
    entry = {text_of(key): plain(value, [str | None] if _is_text(text_of(key)) else ()) for key, value in entry.items()}
    number = entry.get("job-idx")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MOST:
        raise UserError(f"{where}: job-idx is {cut(repr(number))}; it must be a whole number from 0 to {MOST}")
    flags: dict[str, str | None] = {}
    wrong: list[str] = []
    for key, value in entry.items():
        flag = flag_named(f"--{key}")
        name = flag.name if flag is not None else f"--{key}"
        if key == "group" or (flag is not None and flag.kind is None and value is False):
            continue
        if flag is None and key != "resume":
            wrong.append(f"{where}: '{cut(key)}' is no flag{nearest(str(key), _KEYS)}")
        elif flag is not None and flag.kind is None:
            flags[name] = None
            if value is not True:
                wrong.append(f"{where}: {key} is {cut(repr(value))}; it is a switch: write yes, or leave it out")
        elif isinstance(value, (str, int, float)) and (not isinstance(value, bool) or (flag and flag.kind is BOOLEAN)):
            flags[name] = str(value)
        else:
            wrong.append(f"{where}: {key} is {cut(repr(value))}; it needs one value")
    if wrong:
        raise UserError(*wrong)
    return Job(number, str(entry.get("group", "")), flags)


def read_numbers(words: Sequence[str], jobs: Mapping[int, Job], path: str) -> list[int]:
    """Job numbers from words such as 3 and 5-8, in this order. UserError for one that is not in the list."""
    numbers: list[int] = []
    for word in words:
        found = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", word)
        if found is None:
            raise UserError(f"'{cut(word)}' is no job; give numbers and ranges, such as 3 5-8, or --list")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"'{word}' holds no job; the first number of a range is the lower one")
        for number in range(first, last + 1):
            if number not in jobs:
                raise UserError(f"{path} has no job {number}; it has {min(jobs)} to {max(jobs)}, see --list")
            numbers.append(number)
    return numbers


# -- running ---------------------------------------------------------------------------------------


def launch(command: Sequence[str]) -> int:
    """Run a command to its end, passing on the signals that ask it to stop. Its exit code; 75 after such a signal.

    In a session of its own, so that Ctrl-C reaches it once, from here, and not from the terminal as well.
    """
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: FrameType | None) -> None:
        asked.append(number)
        if process is not None:
            process.send_signal(number)

    # Under nohup SIGHUP is ignored, and stays so.
    hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    wanted = [number for number in FORWARDED if not (number == signal.SIGHUP and hangup_ignored)]
    before = {number: signal.signal(number, forward) for number in wanted}
    try:
        process = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - our own launcher
        for number in tuple(asked):
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and code == EXIT_DONE:
        return EXIT_STOPPED  # The job was done, but not those after it.
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
    streams.go_on_without()
    try:
        return _main(arguments)
    except UserError as error:
        print("".join(f"error: {line}\n" for line in error.lines), end="", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT


def _main(arguments: Sequence[str]) -> int:
    own, rest = list(arguments), []
    if "--" in own:
        own, rest = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = Parser(
        prog="launch/experiment.sh",
        allow_abbrev=False,
        usage="%(prog)s LIST [N ...] [--list] [--workers N|auto|demo] [--dry-run] [-- DIST_TRAIN_ARGUMENTS ...]",
        description="Run jobs of a list of experiments, such as configs/experiments/wrnet.yaml, one after another. "
        "Jobs that are done are skipped, those that were stopped go on from their newest checkpoint.",
        epilog="What follows -- goes to dist_train.py with every job: section.key=value, flags of the paper's code, "
        "--overwrite. For instance: -- data.path=/data runs=/results",
    )
    parser.add_argument("list", metavar="LIST", type=argument, help="YAML file")
    parser.add_argument("numbers", metavar="N", nargs="*", help="jobs by number, also ranges: 3 5-8")
    parser.add_argument("--list", action="store_true", dest="show", help="show all jobs, and end")
    parser.add_argument(
        "--workers", default="auto", metavar="N|auto|demo", help="as of launch/local.sh (default: auto)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show each job's resolved config and layers instead")
    asked: argparse.Namespace = parser.parse_intermixed_args(own)
    jobs = read_jobs(asked.list)
    if asked.workers not in ("auto", "demo") and not (asked.workers.isdecimal() and int(asked.workers)):
        raise UserError(f"--workers is '{asked.workers}'; it must be a number of at least 1, auto or demo")
    chosen = [jobs[number] for number in read_numbers(asked.numbers, jobs, asked.list)]
    experiments = Experiments(asked.list, jobs, Options.parse(rest, dry_run=asked.dry_run))
    if asked.show:
        print_to_reader(experiments.table())
        return EXIT_DONE
    if not chosen:
        raise UserError("no job to run; give numbers, such as 3 5-8, or --list")
    for job in chosen:
        experiments.config(job)  # Whatever is wrong with any of them is said before the first one starts.
    for place, job in enumerate(chosen):
        code = experiments.run(job, ["bash", str(LAUNCHER), "--workers", asked.workers])
        if code != EXIT_DONE:
            print(_ending(experiments, chosen, place, code), file=sys.stderr, flush=True)
            return code
    return EXIT_DONE


def _ending(experiments: Experiments, chosen: Sequence[Job], place: int, code: int) -> str:
    """Why the list ends with a job, and what was not run.

    It ends with bad input too, which the job has said: most of it, such as a data set that is not there, is every
    job's. What is wrong in the list itself was said before the first job started.
    """
    job, left = chosen[place], [f" {other.number}" for other in chosen[place + 1 :]]
    why = {EXIT_BAD_INPUT: "has bad input", EXIT_STOPPED: "was stopped"}.get(code, f"ended with code {code}")
    if code == EXIT_STOPPED and experiments.is_done(job):
        why = "is done, then a signal came"
    more = f"; not run:{''.join(left)}" if left else ""
    again = {EXIT_BAD_INPUT: "; mend it: the same command goes on", EXIT_STOPPED: "; the same command goes on"}
    return f"job {job.number} {why}{more}{again.get(code, '')}"
