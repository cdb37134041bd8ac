"""The help texts of the command line."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable

import pytest
import torch

from dynsparse import __version__
from dynsparse.cli.asking import load_config
from dynsparse.cli.options import parse
from dynsparse.cli.resuming import read_resume
from dynsparse.config.schema import RunConfig
from dynsparse.hints import models_of


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def printed(option: str) -> str:
        with pytest.raises(SystemExit) as ended:
            parse([option], "dist_train.py")
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    return printed


def test_help_begins_with_examples_and_names_what_a_config_can_choose(page: Callable[[str], str]) -> None:
    text = page("--help")
    places = [text.index(words) for words in ("examples:", "methods (", "models (", "data sets (", "options:")]
    assert places == sorted(places)
    for section in ("method", "model", "data"):
        for name in models_of(RunConfig.model_fields[section].annotation):
            assert re.search(rf"^  {re.escape(name)} +\S", text, re.MULTILINE), name
    for option in ("--config", "--resume", "--evaluate", "--check", "--help-paper", "--version", "--dry-run"):
        assert re.search(rf"^  .*{option}\b", text, re.MULTILINE), option
    assert "--big-new-weights" not in text
    assert "--big-new-weights" in page("--help-paper")


def test_examples_of_the_help_are_command_lines(page: Callable[[str], str]) -> None:
    lines = re.findall(
        r"^  (?:\S+ )*?(?:dist_train.py|--) (--.*?)(?:   .*)?$", page("--help") + page("--help-paper"), re.MULTILINE
    )
    assert len(lines) == 9
    for words in lines:
        asked = parse(words.split(), "dist_train.py")
        if asked.evaluate is None:
            load_config(asked, read_resume(asked))


def test_version_names_what_decides_a_run(page: Callable[[str], str]) -> None:
    lines = page("--version").splitlines()
    assert lines[0] == f"dynsparse {__version__}"
    assert f"torch {torch.__version__}" in lines
    assert f"Python {platform.python_version()}" in lines
    assert any(re.fullmatch(r"DALI (none|\d+\.\d+.*)", line) for line in lines)
