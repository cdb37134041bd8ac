"""What a start costs that meets a hostile config: seconds and memory to the error, beside an ordinary `--dry-run`.

    python -m benchmarks.hostile_configs           (2 minutes on 2 cores)
    python -m benchmarks.hostile_configs --only "a thousand laughs"

Each case is one YAML file that `dist_train.py --dry-run` reads in a process of its own. Processor seconds count from
the start of the process to its end, imports included; memory is its largest resident set.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import record
from benchmarks.harness.record import ROOT

NAME = "hostile_configs"
ORDINARY = "an ordinary config"
GOOD = (ROOT / "configs/digits_dsr.yaml").read_text()


def laughs(levels: int, merged: bool) -> str:
    """Each level holds the one before ten times."""
    lines = ["a0: &a0 {x: 1}" if merged else "a0: &a0 [1]"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{before}], k{level}: 1}}" if merged else f"[{before}]"))
    return "\n".join(lines) + "\n"


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content, encoding="utf-8", errors="surrogatepass") and None


def hollow(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)


CASES: dict[str, Callable[[Path], None]] = {
    ORDINARY: text(GOOD),
    "a thousand laughs": text(laughs(9, merged=False)),
    "merge keys that laugh": text(laughs(9, merged=True)),
    "3,000 levels": text("a: " + "[" * 3000 + "]" * 3000),
    "3,000 levels of blocks": text("".join(f"{' ' * level}a:\n" for level in range(700))),
    "itself": text("a: &a [*a]\n"),
    "an integer of 200,000 digits": text(GOOD + "seed: " + "9" * 200_000 + "\n"),
    "an integer of 200,000 hexadecimal digits": text(GOOD + "seed: 0x" + "f" * 200_000 + "\n"),
    "an integer to the base of 60": text(GOOD + "seed: " + "1:" * 60_000 + "1\n"),
    "layers of a million": text(GOOD.replace("name: mnist_mlp", "name: mnist_mlp\n  hidden: [1000000, 1000000]")),
    "100,000 layers": text(GOOD.replace("name: mnist_mlp", f"name: mnist_mlp\n  hidden: [{'9,' * 100_000}9]")),
    "images of a million pixels a side": text(GOOD.replace("name: digits\n", "name: digits\n  image_size: 1000000\n")),
    "250 kB of keys": text("".join(f"k{number}: 1\n" for number in range(25_000))),
    "5 GB of nothing": hollow,
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}  # fmt: skip


def measured(make: Callable[[Path], None]) -> dict[str, Any]:
    """In a child of its own, whose usage is known when it has ended."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        make(path)
        command = [sys.executable, "dist_train.py", "--config", str(path), "--dry-run", f"runs={folder}/runs"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = [line.strip().replace(folder, "") for line in process.stderr]
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1024),
        "exit_code": process.returncode,
        "said": said[-1][:200] if said else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="a case beside the ordinary one")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to write the figures (benchmarks/results)")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    names = [name for name in CASES if asked.only is None or name in (ORDINARY, *asked.only)]
    found = {}
    for name in names:
        found[name] = measured(CASES[name])
        print(f"{name}: {found[name]}", flush=True)
    usual = found[ORDINARY]
    most = {
        key: round(max(case[key] - usual[key] for case in found.values()), 2)
        for key in ("processor_seconds", "peak_mb")
    }
    command = shlex.join(["python", "-m", f"benchmarks.{NAME}", *(f"--only={name}" for name in asked.only or ())])
    path = record.keep(NAME, command, {"above": most, "cases": found}, asked.output)
    print(f"at most above the ordinary: {most}; {path}")


if __name__ == "__main__":
    main()
