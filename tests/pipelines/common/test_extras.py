"""One command installs an extra, in every message and on every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.common.extras import DALI, install_command

ROOT = Path(__file__).parents[3]
PROJECT = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
EXTRAS = {*re.findall(r"^(\w+) = \[", PROJECT, re.MULTILINE)}
INSTALLS = re.compile(r"pip install[^`\n]*\[.*|dynsparse\[.*")
FORM = re.compile(r"pip install --constraint constraints\.txt '\.\[([\w,]+)\]'")


def texts(place: str) -> list[tuple[str, str]]:
    """Names and texts of the files in a place, or of the file."""
    paths = [ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*"))
    wanted = [path for path in paths if path.suffix in (".py", ".md", ".ipynb", ".sh")]
    return [(path.relative_to(ROOT).as_posix(), path.read_text()) for path in wanted]


def test_the_command_is_that_of_getting_started() -> None:
    command = install_command("train,report,export")
    assert command in (ROOT / "docs/getting-started.md").read_text()
    assert command in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("place", ["README.md", "docs", "examples", "dynsparse", "pipelines", "launch"])
def test_no_page_and_no_message_has_another_form(place: str) -> None:
    """Nor an extra that there is not. Messages leave the form to `install_command`."""
    for name, text in texts(place):
        for found in INSTALLS.findall(text):
            form = FORM.match(found)
            if name == "pipelines/common/extras.py":
                continue
            assert form and {*form[1].split(",")} <= EXTRAS, f"{name}: {found}"
            assert not name.startswith(("dynsparse/", "pipelines/")), f"{name}: {found}"


def test_messages_name_extras_that_there_are() -> None:
    named = {
        extra
        for _, text in texts("dynsparse") + texts("pipelines")
        for extra in re.findall(r"install_command\(['\"](\w+)", text)
    }
    assert named >= {"export", "parquet", "report", "timm"}
    assert named <= EXTRAS


def test_the_wheel_of_dali_is_that_of_the_extra() -> None:
    (train,) = re.findall(r"^train = \[(.*?)\]", PROJECT, re.MULTILINE | re.DOTALL)
    assert re.findall(r'"([\w-]*dali[\w-]*)>=[^"]*; platform_system == \'Linux\'"', train) == [DALI]
    assert re.search(rf"^{DALI}==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
