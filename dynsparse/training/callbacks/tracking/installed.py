"""Trackers that a config asks for, and refusals of those that cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.callbacks.tracking.base import Tracker
from dynsparse.training.callbacks.tracking.observer import LIMIT_SECONDS, Tracking
from pipelines.common.extras import install_command


def trackings(config: RunConfig) -> list[Tracking]:
    """Return an observer for each service that the config asks for."""
    limit = min(LIMIT_SECONDS, config.distributed.timeout_seconds / 4)  # The other ranks wait meanwhile.
    return [Tracking(_tracker(name)(config.folder, config.log.project), limit=limit) for name in _asked(config)]


def require_trackers(config: RunConfig, *, usable: bool = True) -> None:
    """Raise UserError for a service whose library is missing, or that it would refuse for sure.

    `usable`: look at keys and addresses too, which takes the seconds of an import. Nothing is sent.
    """
    problems = [f"log.{name}: {line}" for name in _asked(config) if (line := _problem(name, usable=usable))]
    if problems:
        raise UserError(*problems)


def _asked(config: RunConfig) -> list[str]:
    return [name for name, asked in (("wandb", config.log.wandb), ("mlflow", config.log.mlflow)) if asked]


def _problem(name: str, *, usable: bool) -> str | None:
    if find_spec(name) is None:
        return f"{name} is not installed; {install_command(name)}"
    return _find_problem(name)() if usable else None


# Both libraries are optional, and take seconds to import.


def _tracker(name: str) -> type[Tracker]:
    if name == "wandb":
        from dynsparse.training.callbacks.tracking.wandb_tracker import WandbTracker

        return WandbTracker
    from dynsparse.training.callbacks.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker


def _find_problem(name: str) -> Callable[[], str | None]:
    if name == "wandb":
        from dynsparse.training.callbacks.tracking import wandb_tracker

        return wandb_tracker.problem
    from dynsparse.training.callbacks.tracking import mlflow_tracker

    return mlflow_tracker.problem
