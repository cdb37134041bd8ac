"""The course of a script: read the options, measure, keep the figures, write the page."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from benchmarks.harness import record
from benchmarks.harness.record import Result
from pipelines.common.command_line import Parser, at_least_1
from pipelines.common.errors import EXIT_BAD_INPUT, UserError

Page = Callable[[Result], str]
"""Text of a page, from the JSON's content and `link`, which leads to the JSON."""


class ScriptParser(Parser):
    """The project's parser, which here ends the script: with the line of an error, and exit code 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Print the error's line, and exit."""
        try:
            super().error(message)
        except UserError as error:
            self.exit(EXIT_BAD_INPUT, f"error: {error}\n")


@contextmanager
def told() -> Iterator[None]:
    """End the script with the lines of a UserError, in place of a traceback."""
    try:
        yield
    except UserError as error:
        sys.exit("".join(f"error: {line}\n" for line in error.lines).rstrip())


def plain_parser(description: str | None) -> ArgumentParser:
    """Options of a script that writes a JSON and no page. Notes the commit, before anything is measured."""
    record.own_commit()
    parser = ScriptParser(description)
    parser.add_argument("--output", metavar="DIR", type=Path, help="write there, instead of to the kept figures")
    return parser


def page_parser(description: str | None, rounds: int | None = None) -> ArgumentParser:
    """Options of a script that writes a JSON and a page; --rounds where it has a default."""
    parser = plain_parser(description)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, and figures without meaning")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew")
    if rounds is not None:
        parser.add_argument("--rounds", type=at_least_1, default=rounds, help=f"measured ({rounds})")
    return parser


def run(
    name: str,
    parser: ArgumentParser,
    measure: Callable[[Namespace], Result],
    page: Page,
    fill: Callable[[], None] | None = None,
) -> None:
    """Measure and print the page. Tiny figures are kept only where --output says.

    `fill` writes the kept figures to a page that has more than them, in place of {name}.md in docs/results/.
    """
    with told():
        _run(name, parser.parse_args(), measure, page, fill)


def _run(
    name: str,
    asked: Namespace,
    measure: Callable[[Namespace], Result],
    page: Page,
    fill: Callable[[], None] | None,
) -> None:
    if asked.page:
        write_page(name, page, asked.output, fill)
        return
    result = {"load_before": record.load(), **measure(asked)}
    if asked.output or not asked.tiny:
        keep(name, result, page, asked.output, fill)
    print(page({**record.described(name, result), "link": f"{name}.json"}))


def keep(name: str, result: Result, page: Page, folder: Path | None, fill: Callable[[], None] | None = None) -> None:
    """Write the JSON, and the page from it. A page that cannot be made leaves what is kept as it is."""
    page({**record.described(name, result), "link": ""})
    record.keep(name, result, folder)
    write_page(name, page, folder, fill)


def keep_whole(name: str, result: Result, folder: Path | None, whole: bool) -> str:
    """Write the JSON of a script without a page and return its path; a part replaces no kept figures, and says so."""
    if folder is None and not whole:
        return "a part alone: no figures are kept without --output"
    return str(record.keep(name, result, folder))


def write_page(name: str, page: Page, folder: Path | None, fill: Callable[[], None] | None = None) -> None:
    """Write {name}.md to docs/results/ or another folder, from the JSON alone."""
    if fill is not None and folder is None:
        fill()
        return
    path, pages = record.path_of(name, folder), folder or record.PAGES
    text = page({**record.kept(name, folder), "link": link(path, pages)})
    (pages / f"{name}.md").write_text(text + "\n")


def link(path: Path, folder: Path) -> str:
    """Link to a JSON from a page in a folder."""
    return f"[{path.name}]({Path(os.path.relpath(path, folder)).as_posix()})"
