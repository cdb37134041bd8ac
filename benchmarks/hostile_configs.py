"""Cost of a start that meets a hostile config: seconds and memory to the error, beside an ordinary `--dry-run`.

    python -m benchmarks.hostile_configs           (2 minutes on 2 cores)
    python -m benchmarks.hostile_configs --only "a thousand laughs"

Each case is one YAML file that `dist_train.py --dry-run` reads in a process of its own. Seconds count from the start of
the process to its end, imports included; memory is the most that its processes hold.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.record import ROOT
from benchmarks.parts import hostile

GOOD = (ROOT / "configs/digits_dsr.yaml").read_text()


def laughs(levels: int, merged: bool) -> str:
    """Write levels that each hold the one before ten times."""
    lines = ["a0: &a0 {x: 1}" if merged else "a0: &a0 [1]"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{before}], k{level}: 1}}" if merged else f"[{before}]"))
    return "\n".join(lines) + "\n"


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content, encoding="utf-8", errors="surrogatepass")


def hollow(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)


CASES: dict[str, Callable[[Path], object]] = {
    "an ordinary config": text(GOOD),
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


def prepare(case: str, folder: Path) -> list[str]:
    path = folder / "config.yaml"
    CASES[case](path)
    return [sys.executable, "dist_train.py", "--config", str(path), "--dry-run", f"runs={folder}/runs"]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hostile.run("hostile_configs", __doc__, CASES, prepare)


if __name__ == "__main__":
    main()
