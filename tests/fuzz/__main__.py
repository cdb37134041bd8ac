"""python -m tests.fuzz: see the package's docstring."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # Else torch would be imported before `preload` has set how many threads it may have.
    from tests.fuzz.cases import Fuzzer, Result

KINDS = ("runs", "inputs")
SEEDS = 10_000_000
"""Cases of one --seed."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="runs", help="what is damaged (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first case is this times ten millions")
    parser.add_argument("--seconds", type=float, help="begin no case after so long")
    parser.add_argument("--cases", type=int, help="run so many")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="of these, run the Kth and each Nth after it")
    parser.add_argument(
        "--only",
        type=int,
        metavar="CASE",
        help="run one case again, with the same --mutation and --command, and keep its folder",
    )
    parser.add_argument("--mutation", default="", help="only those whose names begin so")
    parser.add_argument("--command", default="", help="only those whose names begin so")
    parser.add_argument("--deadline", type=float, default=30, help="seconds that a command may take")
    parser.add_argument("--log", type=Path, help="a file that gets a line of JSON for each failure")
    parser.add_argument("--plan", action="store_true", help="damage, and print what would run")
    parser.add_argument("--list", action="store_true", help="print the names of mutations and commands, and end")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder that goes whatever happens."""
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _leave)
    folder = Path(tempfile.mkdtemp(prefix="dynsparse-fuzz-"))
    owner = os.getpid()
    try:
        yield folder
    finally:
        if os.getpid() == owner:
            signal.setitimer(signal.ITIMER_REAL, 0)
            shutil.rmtree(folder, ignore_errors=True)


def _leave(*_: object) -> NoReturn:
    """Again and again until it has left: raised while Python lets go of an object, an exit is lost."""
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    sys.exit(143)


def main(arguments: list[str]) -> int:
    """0 if all went well, 1 if a case failed."""
    given = parse(arguments)
    from tests.fuzz.preload import preload

    preload()
    from tests.fuzz.cases import Filter
    from tests.fuzz.inputs.cases import InputFuzzer
    from tests.fuzz.run_cases import RunFuzzer

    kind = InputFuzzer if given.kind == "inputs" else RunFuzzer
    if given.list:
        mutations, commands = kind.names()
        print("\n".join([*mutations, "", *commands]))
        return 0
    with workplace() as work:
        fuzzer = kind.make(work, Filter(given.mutation, given.command), given.deadline)
        if given.plan:
            for seed in seeds(given):
                print(f"case {seed}: {fuzzer.plan(seed)}", flush=True)
            return 0
        return once(fuzzer, given.only) if given.only is not None else many(fuzzer, given)


def seeds(given: argparse.Namespace) -> Iterator[int]:
    """One after the other, until there are enough."""
    began = time.monotonic()
    most = given.cases if given.cases is not None else SEEDS if given.seconds is not None else 100
    part, parts = map(int, given.part.split("/"))
    for number in range(part - 1, most, parts):
        if given.seconds is not None and time.monotonic() - began > given.seconds:
            return
        yield given.seed * SEEDS + number


def once(fuzzer: Fuzzer, seed: int) -> int:
    """Run one case, print all that is known of it and keep its folder."""
    result = fuzzer.run(seed)
    print(json.dumps(asdict(result), indent=2).replace("\\n", "\n"))
    kept = Path(tempfile.mkdtemp(prefix=f"case-{seed}-"))
    shutil.move(fuzzer.folder(seed), kept)
    print(f"its folder: {kept}")
    return int(bool(result.faults))


def many(fuzzer: Fuzzer, given: argparse.Namespace) -> int:
    began = time.monotonic()
    results = []
    for seed in seeds(given):
        result = fuzzer.run(seed)
        fuzzer.remove(seed)
        results.append(result)
        if result.faults:
            say(result)
        if result.faults and given.log:
            with given.log.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
    for title in ("mutation", "command"):
        print(table(title, Counter((getattr(result, title), bool(result.faults)) for result in results)))
    for ending, count in Counter(result.ending for result in results).most_common():
        print(f"{count:6} {ending}")
    seconds, failed = time.monotonic() - began, sum(bool(result.faults) for result in results)
    print(f"{len(results)} cases in {seconds:.0f} s, {len(results) / seconds:.1f} a second; {failed} failed")
    return int(failed > 0)


def table(title: str, counts: Counter[tuple[str, bool]]) -> str:
    names = sorted({name for name, _ in counts})
    rows = [f"{name:60} {counts[name, False]:8} {counts[name, True]:8}" for name in names]
    return "\n".join([f"{title:60}     well   failed", *rows, ""])


def say(result: Result) -> None:
    print(f"case {result.seed}: {result.subject}, {result.mutation}: {result.did}")
    print(f"    python {result.line}")
    for fault in result.faults[:4]:
        print(f"    {fault[:300]}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
