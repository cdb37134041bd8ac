"""Small runs whose checkpoints the tools look at and take away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynsparse.cli.main import main
from dynsparse.config.schema import RunConfig
from dynsparse.training.callbacks.summary_file import SummaryFile
from dynsparse.training.checkpoint import CheckpointFolder, read, write
from dynsparse.training.trainer import Trainer
from tests.training import runs


def train(folder: Path, name: str, **sections: Any) -> RunConfig:
    """Train to the end in this process; its folder has checkpoints and a summary."""
    settings = runs.config(name=name, runs=str(folder), **sections)
    settings.folder.mkdir(parents=True)
    checkpoints = CheckpointFolder(settings.folder / "checkpoints", keep=2)
    summary = SummaryFile(settings.folder / "summary.json")
    trainer = runs.trainer(settings, observers=[summary], checkpoints=checkpoints)
    trainer.fit()
    return settings


def network_of(path: Path, settings: RunConfig) -> nn.Module:
    """The network of a checkpoint as evaluation has it, through the trainer."""
    trainer: Trainer = runs.trainer(settings)
    trainer.run.load_network(read(path))
    return trainer.run.model.eval()


def changed(path: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Another checkpoint with a right checksum, whose state `change` has altered."""
    state = read(path)
    change(state)
    write(to, state)
    return to


def images_for(settings: RunConfig, batch: int) -> torch.Tensor:
    return torch.randn(batch, *settings.data.image_shape, generator=torch.Generator().manual_seed(batch))


def call(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    """`python -m dynsparse ARGUMENTS` in this process: exit code, standard output, standard error."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def assert_one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert out == ""
    for part in parts:
        assert part in err
