from __future__ import annotations

from pathlib import Path

import pytest

from dynsparse import torchrun


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that torchrun makes for a launch."""
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "DYNSPARSE_EXIT_FILE"):
        monkeypatch.delenv(name, raising=False)
    begin_attempt(tmp_path, monkeypatch, 0)
    return tmp_path


def begin_attempt(launch: Path, monkeypatch: pytest.MonkeyPatch, number: int, rank: int = 0) -> None:
    folder = launch / f"attempt_{number}" / str(rank)
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))


def test_the_first_on_a_machine_speaks(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = []
    for attempt, rank in ((0, 1), (0, 0), (0, 1), (1, 0), (1, 1)):
        begin_attempt(launch, monkeypatch, attempt, rank)
        spoken.append(torchrun.speaks_first())
    assert spoken == [True, False, False, True, False]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/nowhere/at/all/error.json")
    assert torchrun.speaks_first(), "better twice than never"


@pytest.mark.parametrize("file", [None, ""], ids=["no torchrun", "torchrun --log-dir /dev/null"])
def test_without_a_folder(file: str | None, launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    if file is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    assert [torchrun.speaks_first(), torchrun.speaks_first()] == [True, True]
    assert torchrun.launch_id() is None
    torchrun.end_launch(2)
    assert torchrun.over() is None


def test_an_end_is_known_to_later_attempts(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchrun.over() is None
    torchrun.end_launch(75)
    begin_attempt(launch, monkeypatch, 1, rank=3)
    assert torchrun.over() == 75


def test_a_launch_has_the_id_of_its_rendezvous_or_that_of_its_folder(
    launch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torchrun.launch_id() == str(launch)
    begin_attempt(launch, monkeypatch, 1, rank=1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert torchrun.launch_id() == str(launch)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    assert torchrun.launch_id() == "job-1"


def test_an_exit_code_is_that_of_the_latest_attempt(launch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = launch / "exit"
    monkeypatch.setenv("DYNSPARSE_EXIT_FILE", str(file))
    torchrun.forget_exit_code()
    torchrun.note_exit_code(75)
    begin_attempt(launch, monkeypatch, 0, rank=1)
    torchrun.forget_exit_code()
    assert file.read_text() == "75\n", "of another worker of the same attempt"
    begin_attempt(launch, monkeypatch, 1)
    torchrun.forget_exit_code()
    assert file.read_text() == ""
