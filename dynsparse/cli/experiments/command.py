"""The verb `experiments`: run jobs of a list."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dynsparse.cli.experiments.jobs import Job, read_jobs, read_numbers
from dynsparse.cli.experiments.listed import Experiments, Options
from dynsparse.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_STOPPED, UserError
from pipelines.common import streams
from pipelines.common.command_line import Parser
from pipelines.common.paths import argument

LAUNCHER = Path(__file__).parents[3] / "launch" / "local.sh"
"""The script that runs a job. It is in a clone, not in a wheel."""
PROGRAM = "launch/experiment.sh" if LAUNCHER.is_file() else "dynsparse experiments"


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says, and return the exit code."""
    streams.go_on_without()
    try:
        return _run(*_parse(arguments))
    except UserError as error:
        print("".join(f"error: {line}\n" for line in error.lines), end="", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the words after --."""
    own, rest = list(arguments), []
    if "--" in own:
        own, rest = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        usage="%(prog)s LIST [N ...] [--list] [--workers N|auto|demo] [--dry-run] [-- DIST_TRAIN_ARGUMENTS ...]",
        description="Run jobs of a list of experiments, such as configs/experiments/wrnet.yaml, one after another. "
        "Jobs that are done are skipped, those that were stopped resume from their newest checkpoint.",
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
    return parser.parse_intermixed_args(own), rest


def _run(asked: argparse.Namespace, rest: list[str]) -> int:
    jobs = read_jobs(asked.list)
    if asked.workers not in ("auto", "demo") and not (asked.workers.isdecimal() and int(asked.workers)):
        raise UserError(f"--workers is '{asked.workers}'; it must be a number of at least 1, auto or demo")
    chosen = [jobs[number] for number in read_numbers(asked.numbers, jobs, asked.list)]
    experiments = Experiments(asked.list, jobs, Options.parse(rest, dry_run=asked.dry_run))
    if asked.show:
        print(experiments.table(), flush=True)
        return EXIT_DONE
    if not chosen:
        raise UserError("no job to run; give numbers, such as 3 5-8, or --list")
    if not LAUNCHER.is_file():
        raise UserError(f"{LAUNCHER} is not there; jobs are run from a clone of dynsparse, --list works here too")
    for job in chosen:
        experiments.config(job)  # Mistakes of all jobs are told before the first one starts.
    return _run_in_turn(experiments, chosen, asked.workers, rest)


def _run_in_turn(experiments: Experiments, chosen: Sequence[Job], workers: str, rest: Sequence[str]) -> int:
    for place, job in enumerate(chosen):
        before = experiments.taken(job)
        code = experiments.run(job, ["bash", str(LAUNCHER), "--workers", workers])
        if code != EXIT_DONE:
            begun = experiments.taken(job) != before  # A start that ended before it took the folder changed nothing.
            again = _commands_again(experiments, chosen[place:], workers, rest, begun=begun)
            done = begun and experiments.is_done(job)
            print(_ending(chosen, place, code, again, done=done), file=sys.stderr, flush=True)
            return code
    return EXIT_DONE


def _commands_again(
    experiments: Experiments, jobs: Sequence[Job], workers: str, rest: Sequence[str], *, begun: bool
) -> str | None:
    """Return the command lines that go on with the first of the jobs and run the others; None for the same as before.

    With --overwrite the same command would remove what the jobs have done. The first one goes on without it if it has
    `begun` anew; those after it hold older runs still.
    """
    if not experiments.options.overwrite or experiments.options.dry_run:
        return None
    first, *others = jobs
    if experiments.is_done(first) and begun:
        parts = [(others, list(rest))]
    elif begun:
        parts = [([first], [word for word in rest if word != "--overwrite"]), (others, list(rest))]
    else:
        parts = [(list(jobs), list(rest))]
    return " && ".join(_command(experiments.path, some, workers, words) for some, words in parts if some)


def _command(path: str, jobs: Sequence[Job], workers: str, rest: Sequence[str]) -> str:
    script = os.path.relpath(LAUNCHER.with_name("experiment.sh"))
    words = [script, path, *(str(job.number) for job in jobs)]
    words += [] if workers == "auto" else ["--workers", workers]
    return shlex.join([*words, *(["--", *rest] if rest else [])])


def _ending(chosen: Sequence[Job], place: int, code: int, again: str | None, *, done: bool) -> str:
    """Return why the list ends with this job, which jobs were not run, and by which command it goes on (`again`).

    Bad input ends it too. Most of it, such as a missing data set, is the same for every job, and the job has said it.
    Mistakes in the list itself were told before the first job started.
    """
    job, left = chosen[place], [f" {other.number}" for other in chosen[place + 1 :]]
    why = {EXIT_BAD_INPUT: "has bad input", EXIT_STOPPED: "was stopped"}.get(code, f"ended with code {code}")
    if code == EXIT_STOPPED and done:
        why = "is done, then a signal came"
    more = f"; not run:{''.join(left)}" if left else ""
    if code not in (EXIT_BAD_INPUT, EXIT_STOPPED) or again == "":
        return f"job {job.number} {why}{more}"
    mend = "mend it: " if code == EXIT_BAD_INPUT else ""
    how = "the same command resumes" if again is None else f"this goes on: {again}"
    return f"job {job.number} {why}{more}; {mend}{how}"
