"""The jobs of a list, read from its file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynsparse.cli.paper.flags import FLAGS, flag_named
from dynsparse.cli.paper.kinds import BOOLEAN, MLP, MODEL, TEXT
from dynsparse.config.reading import plain, read_file, text_of
from dynsparse.config.shipped import found
from dynsparse.errors import UserError
from pipelines.common.settings import MOST
from pipelines.common.text import cut, nearest

_KEYS = ["group", "resume", *(name[2:] for flag in FLAGS for name in (flag.name, *flag.also) if name[:2] == "--")]


@dataclass(frozen=True)
class Job:
    """One entry of a list."""

    number: int
    group: str
    flags: Mapping[str, str | None]
    """The text of each flag by its name, such as "--epochs"; None for a switch."""

    @property
    def run_name(self) -> str:
        """The name of the run's folder, by which other jobs of the list know it."""
        return self.flags.get("--name") or f"{self.flags.get('--model', MLP)}_{self.number}"


def read_jobs(path: str) -> dict[int, Job]:
    """Return the jobs of a list by number. Raises UserError, a line for each mistake."""
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
    """Return whether a key's value is a path or a name, so that a number there is text."""
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
    """Return job numbers from words such as 3 and 5-8, in this order. Raises UserError for one not in the list."""
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
