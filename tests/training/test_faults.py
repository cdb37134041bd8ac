"""torchrun starts the workers anew after a fault, and the run comes out as if there had been none."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.callbacks import standard_observers
from dynsparse.training.resume import checkpoints_of, find_resume_point, take_folder
from tests.ranks import run_distributed
from tests.training import runs

FAULTY_RUN = Path(__file__).with_name("faulty_run.py")


def small_run(folder: Path, name: str, **sections: Any) -> RunConfig:
    """16 steps: 2 epochs of 8. What travels is settled: a start without a checkpoint would decide it by the clock."""
    checkpoint = {"every_steps": 3, "keep": 3}
    return runs.config(
        **{
            "name": name,
            "runs": str(folder),
            "checkpoint": checkpoint,
            "distributed": {"gradients": "active"},
            **sections,
        }
    )


def train(worker: Worker, settings: RunConfig) -> None:
    settings.folder.mkdir(exist_ok=True)
    runs.trainer(settings, worker, observers=list(standard_observers(settings)) if worker.is_main else []).fit()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run without faults, one for each number of workers."""
    done: dict[int, Path] = {}

    def run(workers: int) -> Path:
        if workers not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            settings = small_run(folder, "a")
            run_distributed(train, workers, settings)
            done[workers] = settings.folder
        return done[workers]

    return run


def with_faults(
    folder: Path, faults: str, *arguments: Any, workers: int, **sections: Any
) -> tuple[RunConfig, int, subprocess.CompletedProcess[str]]:
    """The run with faults, the code that its workers leave behind, and torchrun as it ended."""
    settings = small_run(folder, "faulty", **sections)
    code = folder / "exit"
    result = runs.dist_train(
        "--config",
        runs.write_config(folder, settings),
        *arguments,
        workers=workers,
        max_restarts=5,
        script=FAULTY_RUN,
        FAULTS=faults,
        DYNSPARSE_EXIT_FILE=str(code),
    )
    return settings, int(code.read_text()), result


def assert_same(actual: Path, expected: Path) -> None:
    theirs, ours = runs.summary(expected), runs.summary(actual)
    for key in ("status", "weight_digest", "mask_digest", "rank_digests", "test_top1", "reallocations", "steps"):
        assert ours[key] == theirs[key], key
    assert runs.metrics(actual) == runs.metrics(expected)


def replaced_run(folder: Path) -> None:
    """One of another seed, where the next is to be."""
    old = small_run(folder, "faulty", seed=4, train={"epochs": 1})
    take_folder(old, find_resume_point(old, resume=None, overwrite=False), overwrite=False)
    runs.trainer(old, checkpoints=checkpoints_of(old)).fit()


@pytest.mark.parametrize(
    ("workers", "faults"),
    [
        (2, ["kill 0 building", "raise 0 evaluation", "idle 1 step 13"]),
        pytest.param(4, ["kill 3 step 7"], marks=pytest.mark.slow),
        pytest.param(
            2,
            ["raise 1 settling", "kill 0 step 1", "SIGTERM 1 step 10", "raise 0 evaluation", "kill 1 end"],
            marks=pytest.mark.slow,
        ),
        pytest.param(4, ["kill 0 settling", "hang 2 step 7", "raise 1 evaluation"], marks=pytest.mark.slow),
    ],
    ids=["2 workers", "4 workers", "2 workers, many", "4 workers, many"],
)
def test_one_fault_after_another(tmp_path: Path, undisturbed: Any, workers: int, faults: list[str]) -> None:
    """Each in an attempt of its own. An old run is overwritten once: after that, attempts go on with the new one.

    Where a worker answers no more, the others give up after distributed.timeout_seconds.
    """
    replaced_run(tmp_path)
    patience = {"gradients": "active", "timeout_seconds": 5 * workers}
    settings, code, result = with_faults(
        tmp_path, ", ".join(faults), "--overwrite", workers=workers, distributed=patience
    )
    assert (code, result.returncode) == (0, 0), result.stderr
    assert_same(settings.folder, undisturbed(workers))
    with_checkpoint = [fault for fault in faults if not fault.endswith(("building", "settling", "step 1"))]
    assert result.stderr.count("resuming from") == len(with_checkpoint)


@pytest.mark.slow
def test_killed_before_and_after_it_replaces_a_run(tmp_path: Path) -> None:
    """Killed before it has taken the folder it replaces the old run; killed after that it goes on with the new one."""
    replaced_run(tmp_path)
    faults = "kill 0 building, kill 0 settling, kill 0 step 10"
    settings, code, result = with_faults(tmp_path, faults, "--overwrite", workers=1)
    assert (code, result.returncode) == (0, 0), result.stderr
    expected = runs.trainer(small_run(tmp_path, "new")).fit()
    assert runs.summary(settings.folder)["weight_digest"] == expected.weight_digest
    assert result.stderr.count("resuming from") == 1


@pytest.mark.slow  # In the launcher: tests/launch/test_local.py.
def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    """Found by one worker in the middle of a run, while the other waits for it."""
    _, code, result = with_faults(tmp_path, "bad 1 step 5", workers=2)
    assert code == 2
    assert result.stderr.count("error: what was given is bad") == 1
    assert "resuming from" not in result.stderr
