"""Writes the README's tables from the JSON in results/.

python -m benchmarks.readme            (a test checks that it has been run)
"""

from __future__ import annotations

import json
import re

from benchmarks import plots
from benchmarks.record import RESULTS
from benchmarks.reproduce import METHODS

README = RESULTS.parents[1] / "README.md"


def digits() -> str:
    """Accuracy by method and sparsity."""
    return plots.table(json.loads((RESULTS / "reproduce_digits.json").read_text()), METHODS)


TABLES = {"digits": digits}


def filled(text: str) -> str:
    """The README's text with every table made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        text, count = re.subn(rf"(?<={begin}).*?(?={end})", f"{table()}\n", text, flags=re.DOTALL)
        assert count == 1, f"README.md has {count} places for the table '{name}'"
    return text


def main() -> None:
    README.write_text(filled(README.read_text()))


if __name__ == "__main__":
    main()
