"""All benchmarks of the CPU, one after the other: `make bench`, less than 15 minutes on 2 quiet cores.

Those of training replace the kept figures. Those that take long are only looked at: shortened, with figures that go to
another folder.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness.record import ROOT
from benchmarks.harness.script import ScriptParser

FULL = ("reallocation", "steps", "memory", "startup", "scaling", "passes", "csr", "flops")
SHORT = {
    "allreduce": ("--rounds", "1"),
    "checkpoints": ("--rounds", "1"),
    "pipelines": ("--only", "speed"),
}


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="a minute in all, and figures without meaning")
    looks = ROOT / "runs" / "bench"
    parser.add_argument("--looks", metavar="DIR", type=Path, default=looks, help="where the short looks go")
    arguments = parser.parse_args()
    arguments.looks.mkdir(parents=True, exist_ok=True)
    commands = {name: ["--tiny", "--output", str(arguments.looks)] if arguments.tiny else [] for name in FULL}
    for name, short in SHORT.items():
        commands[name] = [*(["--tiny"] if arguments.tiny else short), "--output", str(arguments.looks)]
    failed = [name for name, options in commands.items() if not ran(name, options)]
    if not arguments.tiny:
        subprocess.run([sys.executable, "-m", "benchmarks.readme"], check=True)
    if failed:
        sys.exit(f"error: {', '.join(failed)}: see above")


def ran(name: str, options: list[str]) -> bool:
    began = time.perf_counter()
    print(f"== {name} {' '.join(options)}", flush=True)
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False)
    print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
