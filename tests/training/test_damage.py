"""A run whose newest checkpoint is damaged resumes from the one before, and ends as if nothing had been."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.checkpoint import checkpoint_of, read
from dynsparse.training.resume import checkpoints_of, find_resume_point, take_folder
from tests.training import runs


def flipped(content: bytes) -> bytes:
    """One bit, in the midst of the largest tensor: elsewhere it could be of no importance."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    largest = max(tensors, key=lambda entry: entry.compress_size)
    place = largest.header_offset + 100 + largest.compress_size // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-500],
    "one flipped bit": flipped,
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: os.urandom(len(content)),
}


def settings(folder: Path) -> RunConfig:
    return runs.config(runs=str(folder), name="a", checkpoint={"every_steps": 4, "keep": 3})


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run's folder, and its summary."""
    torch.set_num_threads(1)  # As the tests have.
    config = settings(tmp_path_factory.mktemp("runs"))
    take_folder(config, find_resume_point(config, resume=None, overwrite=False), overwrite=False)
    return config.folder, runs.trainer(config, checkpoints=checkpoints_of(config)).fit()


def damaged_copy(run: Path, folder: Path, damage: Callable[[bytes], bytes]) -> Path:
    """The run, with its newest checkpoint damaged under all of its names."""
    copy = folder / "a"
    shutil.copytree(run, copy)
    newest = (run / "checkpoints" / "step-000000016.pt").read_bytes()
    for path in (copy / "checkpoints").iterdir():
        if path.read_bytes() == newest:
            path.write_bytes(damage(newest))
    with pytest.raises(UserError):
        read(copy / "checkpoints" / "latest.pt")
    return copy


@pytest.mark.parametrize("by", ["auto", "the run's folder"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_it_goes_on_from_the_one_before(
    whole_run: tuple[Path, Any],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    by: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    copy, config = damaged_copy(whole_run[0], tmp_path, damage), settings(tmp_path)
    start = find_resume_point(config, resume="auto" if by == "auto" else str(copy), overwrite=False)
    assert start is not None
    assert start.path == copy / "checkpoints" / "step-000000012.pt"
    assert "step-000000016.pt: damaged or no checkpoint" in caplog.text or "its checksum differs" in caplog.text
    take_folder(config, start, overwrite=False)
    assert read(copy / "checkpoints" / "latest.pt")["progress"]["step"] == 12
    trainer = runs.trainer(config, checkpoints=checkpoints_of(config))
    trainer.load(start.state)
    summary = trainer.fit()
    for key in ("weight_digest", "mask_digest", "test_top1", "best_top1", "steps", "reallocations"):
        assert getattr(summary, key) == getattr(whole_run[1], key), key
    for path in (copy / "checkpoints").glob("*.pt"):
        read(path)


def test_a_folder_without_its_latest_names_the_newest(whole_run: tuple[Path, Any], tmp_path: Path) -> None:
    copy = tmp_path / "a"
    shutil.copytree(whole_run[0], copy)
    (copy / "checkpoints" / "latest.pt").unlink()
    assert checkpoint_of(str(copy)).name == "step-000000016.pt"
    assert checkpoint_of(str(tmp_path)).name == "latest.pt", "which is not there: an error will name it"


def test_a_damaged_file_that_was_asked_for_is_an_error(whole_run: tuple[Path, Any], tmp_path: Path) -> None:
    """Another than the one named is never taken; of a folder with none that is whole, each is named."""
    copy, config = damaged_copy(whole_run[0], tmp_path, DAMAGE["truncated"]), settings(tmp_path)
    newest = copy / "checkpoints" / "step-000000016.pt"
    with pytest.raises(UserError, match=r"step-000000016\.pt: damaged .*use an earlier one"):
        find_resume_point(config, resume=str(newest), overwrite=False)
    for path in (copy / "checkpoints").iterdir():
        path.write_bytes(b"")
    for resume in ("auto", str(copy)):
        with pytest.raises(UserError) as caught:
            find_resume_point(config, resume=resume, overwrite=False)
        assert [name in line for name, line in zip(("16", "12", "08"), caught.value.lines, strict=False)] == [True] * 3


@pytest.mark.parametrize("arguments", ["--config CONFIG --resume auto", "--resume FOLDER"])
def test_from_the_command_line(whole_run: tuple[Path, Any], tmp_path: Path, arguments: str) -> None:
    copy, config = damaged_copy(whole_run[0], tmp_path, DAMAGE["one flipped bit"]), settings(tmp_path)
    (copy / "summary.json").unlink(missing_ok=True)
    words = {"CONFIG": str(runs.write_config(tmp_path, config)), "FOLDER": str(copy)}
    moved = [] if "CONFIG" in arguments else [f"runs={tmp_path}"]
    done = runs.dist_train(*(words.get(word, word) for word in arguments.split()), *moved)
    assert done.returncode == 0, done.stderr
    assert "step-000000016.pt: damaged" in done.stderr
    assert "resuming from" in done.stderr
    assert runs.summary(copy)["weight_digest"] == whole_run[1].weight_digest
