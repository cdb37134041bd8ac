"""One self-contained HTML page that shows runs side by side: python -m dynsparse report RUN [RUN...]."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from dynsparse.errors import UserError
from dynsparse.training.run import names
from pipelines.common.command_line import Parser
from pipelines.common.extras import install_command
from pipelines.common.paths import argument
from pipelines.common.text import one_line

LIBRARIES = {"matplotlib": "draws the charts", "jinja2": "fills the page"}
EPILOG = (
    "It may be run while a run is going on. The page needs no network and no server: open it in a browser, mail it, "
    "print it. Exit codes: 0 written, 2 bad input."
)


def main(arguments: list[str]) -> None:
    """Write the page. UserError for what is no run or has nothing to show, and for a page that cannot be written."""
    given = _parser().parse_args(arguments)
    _require_libraries()
    folders = _folders(given.runs)
    out = _out(given.out, folders)

    from dynsparse.tools.report.page import render
    from dynsparse.tools.report.run import read_runs

    runs = read_runs(folders)
    for run in runs:
        for note in run.notes:
            print(f"warning: {one_line(f'{run.label}: {note}')}", file=sys.stderr)
    _write(out, render(runs, given.title or _title([run.label for run in runs])))
    print(f"{one_line(out)} ({out.stat().st_size / 1e6:.2f} MB)")


def _parser() -> Parser:
    parser = Parser(prog="python -m dynsparse report", description=__doc__, epilog=EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=argument, help="a run's folder, such as runs/digits_dsr")
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        type=argument,
        help="the page; default: report.html in the folder of a single run, in the current folder for several",
    )
    parser.add_argument("--title", help="of the page; default: the runs' names")
    return parser


def _require_libraries() -> None:
    missing = [f"{name}, which {does}" for name, does in LIBRARIES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the report needs {' and '.join(missing)}; in the project's folder: {install_command('report')}"
        )


def _folders(given: list[str]) -> list[Path]:
    """Return the folders, each of which looks like a run. UserError with a line for each that does not."""
    problems: list[str] = []
    seen: dict[str, str] = {}
    for name in given:
        real = os.path.realpath(name)  # It also takes links that lead in a circle.
        if not name:
            problems.append("RUN is empty; name a run's folder, such as runs/digits_dsr")
        elif real in seen:
            problems.append(f"{name}: the same run as {seen[real]}; name each run once")
        elif problem := _problem(Path(name)):
            problems.append(f"{name}: {problem}")
        seen.setdefault(real, name)
    if problems:
        raise UserError(*problems)
    return [Path(name) for name in given]


def _problem(path: Path) -> str | None:
    """Say why `path` is no run, with the remedy; None if it is one."""
    try:
        if not path.exists():
            return "does not exist; name a run's folder, such as runs/digits_dsr"
        if not path.is_dir():
            return f"is a file; name the run's folder, such as {path.parent}"
        if _is_run(path):
            return None
        inside = sorted(str(folder) for folder in path.iterdir() if _is_run(folder))
    except OSError as error:
        return f"cannot be read ({error.strerror}); allow it, or copy the run"
    instead = f"in it is {inside[0]}" if len(inside) == 1 else f"runs in it are {', '.join(inside[:3])}"
    return (
        f"is no run, it has no {names.METRICS} and no {names.CONFIG}; {instead if inside else 'name a folder of runs/'}"
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (names.METRICS, names.CONFIG))


def _out(given: str | None, folders: list[Path]) -> Path:
    """Return the path of the page. UserError, before any work, if no page can go there."""
    path = Path(given) if given is not None else (folders[0] if len(folders) == 1 else Path()) / names.REPORT
    if path.suffix not in (".html", ".htm"):  # So that a slip replaces no file of a run.
        raise UserError(f"--out: {path} does not end in .html; give the page's file, such as report.html")
    try:
        if path.is_dir():
            raise UserError(f"--out: {path} is a folder; give a file in it, such as {path / names.REPORT}")
        if not path.parent.is_dir():
            raise UserError(f"--out: {path.parent} is no folder; make it first, or name another")
    except OSError as error:
        raise UserError(f"--out: {path} cannot be looked up ({error.strerror}); name another place") from None
    return path


def _write(path: Path, page: str) -> None:
    """Write the page in one step: a browser that loads it meanwhile sees the old page or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            # Names may hold bytes that are no text.
            partial.write_text(page, encoding="utf-8", errors="backslashreplace")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another place with --out") from None


def _title(labels: list[str]) -> str:
    shown = ", ".join(labels[:4])
    return shown if len(labels) <= 4 else f"{shown} and {len(labels) - 4} more"
