"""The program: its verbs, the same as a module, as a console command and under torchrun."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from dynsparse import __version__
from dynsparse.cli import asking, main
from dynsparse.cli.options import parse
from dynsparse.cli.resuming import read_resume
from dynsparse.errors import UserError
from tests.training import runs


def test_the_console_command_is_the_module() -> None:
    entry = f'[project.scripts]\ndynsparse = "{main.program.__module__}:{main.program.__name__}"\n'
    assert entry in (runs.ROOT / "pyproject.toml").read_text()
    assert import_module("dynsparse.__main__").program is main.program


def test_each_verb_is_a_module_with_a_main() -> None:
    for module, _ in main.PROGRAM.verbs.values():
        assert callable(import_module(module).main), module


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--help",), 0)])
def test_usage_names_each_verb(words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*words]) == code
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in main.PROGRAM.verbs)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dynsparse {__version__}\n"


def test_an_unknown_verb_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["trian"]) == 2
    expected = "error: unknown command 'trian'; did you mean 'train'?; see dynsparse --help\n"
    assert capsys.readouterr().err == expected


def test_a_verb_of_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main.main(["scan", str(tmp_path / "nowhere")]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.startswith("error: ")


def test_help_is_the_same_page_but_for_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    pages = {}
    for program in ("dist_train.py", "dynsparse train"):
        with pytest.raises(SystemExit):
            parse(["--help"], program)
        pages[program] = capsys.readouterr().out
    page = pages["dynsparse train"]
    assert "usage: dynsparse train --config FILE" in page
    assert "torchrun --nproc-per-node 4 -m dynsparse train --config" in page
    assert "dist_train" not in page
    options = [page[page.index("options:") :] for page in pages.values()]
    assert options[0] == options[1]


@pytest.mark.parametrize("flag", [(), ("--momentum", "0.5"), ("--resume", "auto", "--resume", "runs/other")])
def test_the_papers_flags_are_entered_only_when_one_is_given(
    flag: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class EnteredError(Exception):
        pass

    def enter(*_: Any, **__: Any) -> None:
        raise EnteredError

    monkeypatch.setattr(asking, "translate", enter)
    path = runs.write_config(tmp_path, runs.config())
    asked = parse(["--config", str(path), *flag, "seed=3"], "dynsparse train")
    if flag:
        with pytest.raises(EnteredError):
            asking.load_config(asked, read_resume(asked))
    else:
        assert asking.load_config(asked, read_resume(asked)).seed == 3


def test_two_resumes_without_a_config_are_no_config() -> None:
    asked = parse(["--resume", "runs/other", "--resume", "auto"], "dynsparse train")
    with pytest.raises(UserError, match=r"^--config is missing"):
        asking.load_config(asked, read_resume(asked))


@pytest.mark.slow  # torchrun with the script, and the module without torchrun, are tried elsewhere.
def test_torchrun_trains_the_module_as_it_does_the_script(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 1})
    words = [*runs.TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "dynsparse", "train"]
    process = runs.start([*words, "--config", runs.write_config(tmp_path, settings)])
    try:
        _, err = process.communicate(timeout=200)
    finally:
        runs.kill(process)
    assert process.returncode == 0, err
    summary = runs.summary(settings.folder)
    assert (summary["status"], summary["world_size"]) == ("done", 2)


def test_bad_input_leaves_the_module_with_2(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dynsparse", "train", "--config", str(tmp_path / "none.yaml")]
    done = subprocess.run(words, cwd=runs.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --config ")
