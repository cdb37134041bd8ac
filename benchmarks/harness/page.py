"""Pages of Markdown: text from pages/, figures from the JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.harness.record import RESULTS, ROOT


def spread(found: Mapping[str, float], digits: int, scale: float = 1) -> str:
    """Write the median, and from the least to the most."""
    median, least, most = (f"{scale * found[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def percent(found: Mapping[str, float], digits: int = 2) -> str:
    """Write median and extremes of fractions in percent."""
    return f"{spread(found, digits, 100)} %"


def versions(found: Mapping[str, str]) -> str:
    """Write libraries and their versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def named(commit: str | None) -> str:
    """Write a commit; of one that was rewritten, with the commit of today's history that first had its figures."""
    known: Mapping[str, str] = json.loads((RESULTS / "commits.json").read_text())["rewritten"]
    first = known.get(str(commit).removesuffix("-dirty"))
    return f"{commit} (rewritten since; {first} has its figures)" if first else str(commit)


_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ROOT / "benchmarks" / "pages"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # Markdown.
)
_PAGES.filters |= {"spread": spread, "percent": percent, "versions": versions, "fmt": format, "named": named}


def filled(template: str, *content: Mapping[str, Any], **names: Any) -> str:
    """Fill the text of pages/{template}.md. Where loops leave several blank lines, one stays."""
    values = {name: value for part in content for name, value in part.items()}
    text = _PAGES.get_template(f"{template}.md").render(values, **names)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def fill_marks(page: Path, parts: Mapping[str, Callable[[], str]]) -> str:
    """Return a page's text with every part made anew, each between comments of its name."""
    text = page.read_text()
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        assert text.count(begin) == text.count(end) == 1, f"{page.name} has no one place for the part '{name}'"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}{part()}\n{end}{rest.partition(end)[2]}"
    return text
