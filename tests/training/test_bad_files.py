"""A run whose data are damaged: it stops on all ranks with a checkpoint, or goes on without them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training import building
from dynsparse.training.checkpoint import CheckpointFolder, read
from pipelines.common.extras import DALI
from tests.pipelines.pictures import damage, numbered_folder
from tests.ranks import run_distributed
from tests.training import runs

STEPS = 2 * 5  # Two epochs.


def configured(folder: Path, **options: Any) -> RunConfig:
    return runs.config(
        name="run",
        runs=str(folder.parent / "runs"),
        model={"name": "small_cnn", "channels": [4, 4]},
        data={
            "name": "imagenet",
            "path": str(folder),
            "number_of_classes": 3,
            "image_size": 16,
            "evaluation_resize": 16,
            "threads": 1,
            **options,
        },
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_folder(tmp_path / "images", train=60, val=24)


def train(worker: Worker, settings: RunConfig, folder: Path, saved: dict[str, Any] | None = None) -> Any:
    """(what the run said in the end, its summary): one of them is None."""
    checkpoints = CheckpointFolder(folder, keep=2) if worker.is_main else None
    trainer = runs.trainer(settings, worker, checkpoints=checkpoints)
    if saved is not None:
        trainer.load(saved)
    try:
        return None, trainer.fit()
    except UserError as error:
        return str(error), None


def bad_file(folder: Path, settings: RunConfig, place: int) -> Path:
    """Damages the file at a place of the first epoch's order."""
    order = runs.trainer(settings).data.train._at.order  # type: ignore[attr-defined]
    file = sorted((folder / "train").glob("*/*"))[int(order.permutation(0)[place])]
    damage(file, "junk")
    return file


@pytest.mark.parametrize(
    "place", [pytest.param(0, marks=pytest.mark.slow), 30, 43], ids=["first batch", "rank 1's", "rank 0's"]
)
def test_all_ranks_stop_at_one_ranks_bad_file_and_can_go_on(folder: Path, tmp_path: Path, place: int) -> None:
    """Batches of 12, of which rank 1 has the latter 6. Skipped later, the run is as if it had always skipped."""
    stop, skip = configured(folder), configured(folder, on_bad_file="skip")
    file = bad_file(folder, stop, place)
    answers = run_distributed(train, 2, stop, tmp_path / "stopped")
    for said, _ in answers:
        assert said is not None and f"train/{file.parent.name}/{file.name} (class {file.parent.name}" in said
        assert f"epoch 0, batch {place // 12}" in said
    saved = read(tmp_path / "stopped" / "latest.pt")
    assert saved["progress"]["step"] == saved["data"]["batch"] == place // 12
    resumed = run_distributed(train, 2, skip, tmp_path / "resumed", saved)
    whole = run_distributed(train, 2, skip, tmp_path / "whole")
    for (_, first), (_, second) in zip(resumed, whole, strict=True):
        assert first.weight_digest == second.weight_digest
        assert first.rank_digests == second.rank_digests
        assert (first.bad_files, first.steps, first.test_top1) == (1, STEPS, second.test_top1)


def test_a_bad_file_in_evaluation_stops_all_ranks_and_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    damage(folder / "val" / "cat" / "0023.png", "empty")  # The last one: rank 1's.
    answers = run_distributed(train, 2, configured(folder), tmp_path / "stopped")
    assert all("val/cat/0023.png (class cat, sample 23 of 24), evaluation: is empty" in said for said, _ in answers)
    saved = read(tmp_path / "stopped" / "latest.pt")
    assert (saved["progress"]["step"], saved["progress"]["epoch"]) == (5, 0)
    skip = configured(folder, on_bad_file="skip")
    resumed = run_distributed(train, 2, skip, tmp_path / "resumed", saved)
    whole = run_distributed(train, 2, skip, tmp_path / "whole")
    assert resumed[0][1].rank_digests == whole[0][1].rank_digests
    assert resumed[1][1].test_top1 == whole[0][1].test_top1


def test_bad_files_are_told_of_once(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that is resumed after its first epoch does not tell of them again."""
    settings = configured(folder, on_bad_file="skip")
    bad_file(folder, settings, 3)
    assert train(Worker(), settings, tmp_path / "whole")[0] is None
    told = [record.message for record in caplog.records if "training files are bad" in record.message]
    assert len(told) == 1 and told[0].startswith("1 of the training files are bad, 1 of them found in this epoch")
    caplog.clear()
    first = min((tmp_path / "whole").glob("step-*.pt"))
    assert 0 < read(first)["progress"]["epoch"] < settings.train.epochs
    assert train(Worker(), settings, tmp_path / "resumed", read(first))[0] is None
    assert "training files are bad" not in caplog.text


def test_from_the_command_line(folder: Path) -> None:
    """Exit code 2 with one line, then --resume with skip; counted in metrics, summary and the closing table."""
    settings = configured(folder)
    file = bad_file(folder, settings, 17)
    path = runs.write_config(folder.parent, settings)
    stopped = runs.dist_train("--config", path, workers=2)
    errors = [line for line in stopped.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and f"{file.parent.name}/{file.name}" in errors[0], stopped.stderr
    assert runs.summary(settings.folder)["status"] == "failed"
    resumed = runs.dist_train("--config", path, "--resume", "auto", "data.on_bad_file=skip", workers=2)
    assert resumed.returncode == 0, resumed.stderr
    assert f"skipping train/{file.parent.name}/{file.name}" in resumed.stderr
    assert "1 of the training files are bad" in resumed.stderr
    assert "bad training files, replaced" in resumed.stdout
    summary = runs.summary(settings.folder)
    assert (summary["status"], summary["bad_files"]) == ("done", 1)
    epochs = [line for line in runs.metrics(settings.folder) if line["kind"] == "epoch"]
    assert [line["bad_files"] for line in epochs] == [1, 1]


def in_a_process_of_its_own(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run dist_train.py where nothing has been imported yet, unlike the processes that tests fork."""
    process = runs.start([sys.executable, runs.ROOT / "dist_train.py", *arguments], **environment)
    try:
        said, errors = process.communicate(timeout=200)
    finally:
        runs.kill(process)
    return subprocess.CompletedProcess(arguments, process.returncode, said, errors)


@pytest.mark.slow
def test_without_dali(folder: Path, tmp_path: Path) -> None:
    """`data.loader: torch` trains where nvidia.dali cannot be imported, and `dali` says what to do."""
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "__init__.py").write_text("")
    settings = configured(folder, loader="torch")
    path = runs.write_config(folder.parent, settings)
    environment = {"PYTHONPATH": f"{tmp_path}:{runs.ROOT}"}
    done = in_a_process_of_its_own("--config", path, **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((settings.folder / "summary.json").read_text())["steps"] == STEPS
    refused = in_a_process_of_its_own("--config", path, "data.loader=dali", "name=other", **environment)
    assert refused.returncode == 2
    remedy = f"on Linux pip install --constraint constraints.txt {DALI}, or set data.loader=torch"
    assert f"data.loader is dali, which is not installed here; {remedy}" in refused.stderr


def test_workers_with_other_data_are_refused(folder: Path) -> None:
    """One machine has another copy of the data: of what is trained on, tested on, or the best epoch is chosen by."""
    other = numbered_folder(folder.with_name("other"), train=60, val=24)
    for root in (folder, other):
        shutil.copytree(root / "val", root / "test")
    assert run_distributed(_sees, 2, configured(folder), configured(other)) == [None, None]
    for part in ("train", "val", "test"):
        file = other / part / "ape/0000.png"
        file.rename(moved := file.with_name("0001.png"))
        (said,) = {*run_distributed(_sees, 2, configured(folder), configured(other))}
        moved.rename(file)
        assert said == (
            "data: worker 1 has other samples to train or to evaluate on than worker 0; "
            "give all machines the same files, of the same names"
        )


def _sees(worker: Worker, settings: RunConfig, others: RunConfig) -> str | None:
    try:
        building.build(others if worker.rank == 1 else settings, worker)
    except UserError as error:
        return str(error)
    return None
