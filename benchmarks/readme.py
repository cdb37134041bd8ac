"""Writes the tables of the README and of docs/operations.md from the JSON in results/.

python -m benchmarks.readme            (a test checks that it has been run)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import plots, scaling, soak
from benchmarks.harness.record import RESULTS, ROOT
from benchmarks.reproduce import METHODS
from benchmarks.speed import speed


def digits() -> str:
    """Accuracy by method and sparsity."""
    return plots.table(json.loads((RESULTS / "reproduce_digits.json").read_text()), METHODS)


def faults() -> str:
    """What a run lived through, and how long it took to go on."""
    return soak.table(json.loads((RESULTS / "soak.json").read_text()))


#: The tables of each page, between comments of their names.
PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"digits": digits, "speed": speed},
    ROOT / "docs/operations.md": {"faults": faults},
    ROOT / "docs/scaling.md": scaling.kept_parts(),
}


def filled(page: Path) -> str:
    """The page's text with every table made anew."""
    text = page.read_text()
    for name, table in PAGES[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        text, count = re.subn(rf"(?<={begin}).*?(?={end})", f"{table()}\n", text, flags=re.DOTALL)
        assert count == 1, f"{page.name} has {count} places for the table '{name}'"
    return text


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page))


if __name__ == "__main__":
    main()
