"""Settings that a resume may change, must keep, or has no use for."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.compatibility import AT_START, require_same_settings
from tests.training import runs

KEPT = (
    "method.name",
    "train.optimizer.name",
    "sparsity.conv",
    "sparsity.fc",
    "train.ema.best_by",
)
"""Refused where the checkpoint has another."""
OF_LAYERS = (
    "sparsity.granularity",
    "sparsity.structure",
    "sparsity.include",
    "sparsity.exclude",
    "sparsity.split",
    "model.*",
)
"""The network and its layers, which are compared with the checkpoint's own."""
ACTS_LATER = (
    "name",
    "job_idx",
    "runs",
    "seed",
    "method.*",
    "data.*",
    "distributed.*",
    "checkpoint.*",
    "log.*",
    "train.optimizer.*",
    "train.parameters.*",
    "train.lr.*",
    "train.penalty.*",
    "train.clip.*",
    "train.mixing.*",
    "train.teacher.*",
    "train.ema.*",
    "train.shrink.*",
    "train.early_stop.*",
    *(
        f"train.{name}"
        for name in (
            "epochs",
            "global_batch_size",
            "image_size",
            "micro_batches",
            "evaluation_batch_size",
            "loss",
            "label_smoothing",
            "precision",
            "channels_last",
            "compile",
            "cuda_graphs",
            "semi_structured",
            "freeze",
            "max_bad_steps",
            "evaluate_train",
            "evaluate_every_epochs",
            "deterministic",
        )
    ),
)
"""A resume acts by them. A new setting of a run is named here, or in one of the tables above."""


def leaves(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the keys of all settings, those of each member of a union among them."""
    for name, field in model.model_fields.items():
        sections = list(settings_in(field.annotation))
        for section in sections:
            yield from leaves(section, f"{above}{name}.")
        if not sections:
            yield f"{above}{name}"


def settings_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from settings_in(part)


def test_each_setting_says_what_it_does_on_a_resume() -> None:
    keys = {key for key in leaves(RunConfig) if not key.startswith("sparsity.initial.")} | {"sparsity.initial"}
    tables = [*AT_START, *KEPT, *OF_LAYERS, *ACTS_LATER]
    assert {key for key in keys if not any(fnmatchcase(key, one) for one in tables)} == set()
    assert {one for one in tables if not any(fnmatchcase(key, one) for key in keys)} == set()


BY_SET = {"method": {"name": "set"}}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "model.weights": ({}, {"model": {"weights": "/nowhere"}}),
    "start.weights_from": ({}, {"start": {"weights_from": "/nowhere"}}),
    "start.masks_from": ({}, {"start": {"masks_from": "/nowhere"}}),
    "sparsity.allocation": ({}, {"sparsity": {"allocation": "erk"}}),
    "sparsity.initial": (BY_SET, {**BY_SET, "sparsity": {"initial": "snip"}}),
    "method.initial_threshold": ({}, {"method": {"initial_threshold": 0.5}}),
    "train.start_epoch": ({}, {"train": {"start_epoch": 1}}),
}


@pytest.mark.parametrize("key", AT_START)
def test_another_setting_of_the_start_is_refused(key: str) -> None:
    before, after = (runs.config(**sections) for sections in CHANGES[key])
    run = runs.trainer(before).run
    state = run.save([run.of_this_rank()])
    require_same_settings(state, before)
    with pytest.raises(UserError) as refused:
        require_same_settings(state, after)
    (line,) = refused.value.lines
    section, name = key.split(".")
    theirs, ours = (config.as_dict()[section].get(name) for config in (before, after))
    assert line.startswith(
        f"{key} acts at a run's start alone: the checkpoint was made with {theirs}, this run has {ours}"
    )
    del state["config"][section][name]
    require_same_settings(state, after)  # As of an older version, which had no such setting.


def test_a_resume_with_another_start_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", log={"tensorboard": False})
    command = ["--config", runs.write_config(tmp_path, settings)]
    assert runs.dist_train(*command).returncode == 0
    before = (settings.folder / "config.yaml").read_bytes()
    more = ["--resume", "auto", "train.epochs=3"]
    for words in (more, [*more, "--check"]):
        refused = runs.dist_train(*command, *words, "sparsity.allocation=erk", "start.masks_from=/nowhere")
        assert refused.returncode == 2
        assert "start.masks_from acts at a run's start alone" in refused.stderr
    assert (settings.folder / "config.yaml").read_bytes() == before
