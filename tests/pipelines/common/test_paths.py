"""Paths as people write them, and how a config writes them."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynsparse.config import loading as config
from dynsparse.errors import UserError
from pipelines.common.paths import argument, expanded, written
from tests.training import runs


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("ODD", "/a$b")
    monkeypatch.delenv("NOT_SET", raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/me"),
        ("~/a", "/home/me/a"),
        ("$HOME/a", "/home/me/a"),
        ("${HOME}/a", "/home/me/a"),
        ("${DATA}_2/$DATA", "/data_2//data"),
        ("a/~/b", "a/~/b"),
        ("./~", "./~"),
        ("a$$b", "a$b"),
        ("$ODD/c", "/a$b/c"),
        ("5$", "5$"),
        ("a/$5", "a/$5"),
        ("a b", "a b"),
        ("", ""),
    ],
)
def test_what_a_text_stands_for(text: str, path: str) -> None:
    assert expanded(text) == path


def test_the_home_of_another_user() -> None:
    assert expanded("~root/a") == f"{os.path.expanduser('~root')}/a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "$NOT_SET/a",
            "is '$NOT_SET/a'; the variable NOT_SET is not set: set it, write the path, or $$ for a dollar sign",
        ),
        ("${NOT_SET}", "the variable NOT_SET is not set"),
        ("${HOME", "of ${...} only ${NAME} is known"),
        ("${HOME:-a}", "of ${...} only ${NAME} is known"),
        ("${}", "of ${...} only ${NAME} is known"),
        ("~nobody-here/a", "is '~nobody-here/a'; there is no user nobody-here: write the folder, or ./~nobody-here/a"),
        ("a" * 256, "a path has at most 4000 bytes, and a name in it 255: shorten it"),
        ("a/" * 2001, "a path has at most 4000 bytes"),
        ("é" * 128, "and a name in it 255"),
    ],
    ids=lambda text: text[:20],
)
def test_what_stands_for_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        expanded(text)
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
        argument(text)


def test_what_is_there_has_any_name(tmp_path: Path) -> None:
    for name in ("$NOT_SET", "~nobody-here", "a${", "line\nend", "$$"):
        (tmp_path / name).mkdir()
        assert argument(name) == name
    for name in ("$NOT_SET", "~nobody-here", "a${"):
        assert expanded(name) == name
    (tmp_path / "~").mkdir()
    assert (expanded("~/a"), argument("~/a")) == ("/home/me/a", "/home/me/a")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_a_path_that_is_written_is_read_back(path: str) -> None:
    text = written(path)
    assert expanded(text) == (path if not path.startswith("~") else f"./{path}")
    assert written(expanded(text)) == text


PATHS = ["runs", "data.path", "data.exclude", "start.weights_from", "start.masks_from"]


def test_every_path_of_a_config(tmp_path: Path) -> None:
    """The config holds the path, config.yaml a text for it."""
    base = {"model": {"name": "small_cnn"}, "method": {"name": "static"}, "data": {"name": "webdataset"}}
    loaded = config.parse(base, [f"{key}=$ODD/{number}" for number, key in enumerate(PATHS)])
    got = [loaded.runs, loaded.data.path, loaded.data.exclude, loaded.start.weights_from, loaded.start.masks_from]  # type: ignore[union-attr]
    assert got == [f"/a$b/{number}" for number in range(5)]
    assert loaded.folder == Path("/a$b/0/small_cnn_0")
    (tmp_path / "c.yaml").write_text(loaded.as_yaml())
    assert config.load(tmp_path / "c.yaml") == loaded
    with pytest.raises(UserError) as caught:
        config.parse(base, [f"{key}=$NOT_SET" for key in PATHS])
    assert [line.split(": is")[0] for line in sorted(caught.value.lines)] == sorted(
        f"command line: {key}" for key in PATHS
    )


def test_a_variable_that_no_config_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "a\nb")
    with pytest.raises(UserError, match=r"runs: is 'a\\nb', which holds the character U\+000A"):
        config.parse(runs.config().as_dict(), ["runs=$ODD"])


def test_paths_of_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--config, --resume, --evaluate and the commands of python -m dynsparse; quoted, so that no shell reads them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text(runs.config(train={"epochs": 1}, runs=str(tmp_path)).as_yaml())
    done = runs.dist_train("--config", "~/c.yaml", "--dry-run", "runs=~/runs")
    assert done.returncode == 0, done.stderr
    assert f"runs: {tmp_path}/runs" in done.stdout
    for options, words in (
        (["--evaluate", "$HOME/run"], f"{tmp_path}/run"),
        (["--resume", "~/run", "--config", "~/c.yaml"], f"{tmp_path}/run"),
        (["--config", "$NOT_SET/c.yaml"], "argument --config: is '$NOT_SET/c.yaml'; the variable NOT_SET is not set"),
        (["--config", "~/c.yaml", "--resume", "$NOT_SET"], "--resume: is '$NOT_SET'; the variable NOT_SET is not set"),
    ):
        refused = runs.dist_train(*options)
        assert refused.returncode == 2
        assert words in refused.stderr
        assert "~" not in refused.stderr
