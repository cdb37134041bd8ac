"""Writes the README's tables from the JSON in results/.

python -m benchmarks.readme            (a test checks that it has been run)
"""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.record import RESULTS

README = RESULTS.parents[1] / "README.md"


def digits() -> str:
    """Accuracy by method and sparsity."""
    found: list[dict[str, Any]] = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("digits_methods_*.json"))]
    lines = ["| sparsity | dynamic sparse | static sparse | difference by seed (standard error) | dense |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for result in found:
        methods = result["methods"]
        cells = {name: f"{methods[name]['mean']:.2f} ± {methods[name]['sd']:.2f}" for name in methods}
        gain = result["dsr_minus_static"]
        difference = f"{gain['mean']:+.2f} ± {gain['standard_error']:.2f}"
        sparsity = methods["dsr"]["runs"][0]["sparsity"]
        lines.append(
            f"| {100 * sparsity:.0f} % | {cells['dsr']} | {cells['static']} | {difference} | {cells['dense']} |"
        )
    return "\n".join(lines)


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
