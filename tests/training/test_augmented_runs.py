"""Runs on augmented pixels: ended by SIGKILL and resumed in mid-epoch, on one worker and on three, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynsparse.config.schema import RunConfig
from tests.training import runs

FAULTY_RUN = Path(__file__).with_name("faulty_run.py")
PIXELS: dict[str, Any] = {
    "rand_augment": {"operations": 2, "magnitude": 12},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4},
    "random_erasing": 0.5,
    "erasing_value": "random",
    "repeated_augmentation": 3,
}


def run(folder: Path, name: str, loader: str, **data: Any) -> RunConfig:
    """5 steps an epoch, one epoch."""
    return runs.config(
        name=name,
        runs=str(folder),
        model={"name": "mnist_mlp", "hidden": [12]},
        data={"name": "digits", "image_size": 8, "threads": 1, "loader": loader, **data},
        train={"epochs": 1, "global_batch_size": 240, "lr": {"name": "steps", "table": 0.05}},
        checkpoint={"every_steps": 2},
    )


@pytest.mark.parametrize(
    ("loader", "workers"),
    [("dali", 0), pytest.param("torch", 0, marks=pytest.mark.slow), pytest.param("dali", 3, marks=pytest.mark.slow)],
)
def test_killed_in_mid_epoch_and_resumed(tmp_path: Path, loader: str, workers: int) -> None:
    whole, killed = (run(tmp_path, name, loader, **PIXELS) for name in ("whole", "killed"))
    assert runs.dist_train("--config", runs.write_config(tmp_path, whole), workers=workers).returncode == 0
    arguments = ["--config", runs.write_config(tmp_path, killed), "--resume", "auto"]
    died = runs.dist_train(*arguments, workers=workers, script=FAULTY_RUN, FAULTS="kill 0 step 3")
    assert died.returncode != 0 and not (killed.folder / "summary.json").exists()
    finished = runs.dist_train(*arguments, workers=workers)
    assert finished.returncode == 0 and "resuming from" in finished.stderr, finished.stderr
    expected, actual = runs.summary(whole.folder), runs.summary(killed.folder)
    for key in ("weight_digest", "mask_digest", "rank_digests", "test_top1", "steps"):
        assert actual[key] == expected[key], key
    assert len({rank["weight_digest"] for rank in expected["rank_digests"]}) == 1


def test_other_repeats_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """One line, exit code 2: at a resume, and for a batch that they do not divide."""
    settings = run(tmp_path, "some", "dali", trivial_augment=True)
    config = runs.write_config(tmp_path, settings)
    assert runs.dist_train("--config", config).returncode == 0
    for words, said in (
        (["--resume", "auto", "train.epochs=2", "5"], "made with repeated_augmentation 1, this run has 5"),
        (["--overwrite", "7"], "data.repeated_augmentation is 7, train.global_batch_size 240;"),
    ):
        *others, repeats = words
        refused = runs.dist_train("--config", config, *others, f"data.repeated_augmentation={repeats}")
        assert refused.returncode == 2
        assert said in refused.stderr and "Traceback" not in refused.stderr
        assert refused.stderr.count("\n") == 1
