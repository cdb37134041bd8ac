"""Weights & Biases as a tracker."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import wandb
from torch import Tensor
from wandb.sdk.lib import wbauth

from dynsparse.errors import EXIT_FAULT, EXIT_STOPPED
from dynsparse.training.callbacks.base import RunReport, Summary
from dynsparse.training.callbacks.tracking.base import Histogram, Reading, Tracker
from dynsparse.training.run import names

PROJECT = "dynsparse"


class WandbTracker(Tracker):
    """Logs to W&B through its own process, or to files in the run's folder with WANDB_MODE=offline.

    W&B counts rows by itself and takes no earlier one. So each row holds its step, which charts take as their axis, and
    a run that resumes from an earlier step can log it again.
    """

    name = "W&B"
    file = names.WANDB_ID
    _run: Any = None

    def new_id(self) -> str:
        return secrets.token_hex(4)

    def begin(self, run: RunReport, id: str | None) -> str:  # noqa: A002 - W&B's word
        found = id or self.new_id()
        self._run = wandb.init(
            id=found,
            resume="allow",
            name=run.name,
            project=self.project or _settings().project or PROJECT,
            config={**run.config, "versions": dict(run.versions)},
            dir=self.folder,
            reinit="create_new",
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, finish_timeout=600),
        )
        self._run.define_metric("*", step_metric="step")
        return found

    def log(self, readings: Sequence[Reading]) -> None:
        for reading in readings:
            self._run.log({"step": reading.step, "_timestamp": reading.seconds, **reading.values})

    def show(self, tag: str, picture: Tensor) -> None:
        self._run.log({"step": 0, tag: wandb.Image(picture.permute(1, 2, 0).numpy())})

    def spread(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        charts = {tag: wandb.Histogram(np_histogram=pair) for tag, pair in histograms.items()}
        self._run.log({"step": step, **charts})

    def end(self, summary: Summary) -> None:
        self._run.summary.update(asdict(summary))
        if summary.status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code={"failed": EXIT_FAULT, "stopped": EXIT_STOPPED}.get(summary.status, 0))

    def where(self) -> str:
        if self._run.offline:
            return f"offline; wandb sync {self._run.settings.sync_dir} sends it"
        return str(self._run.url or "disabled")

    def left(self) -> str:
        return f"those that wait in {self.folder / names.WANDB} are sent by wandb sync DIR"

    def may_pass(self, error: Exception) -> bool:
        return isinstance(error, (wandb.errors.CommError, OSError, TimeoutError))


def _settings() -> Any:
    """Return W&B's settings of this process, under which it prints nothing: it would print between our lines."""
    return wandb.setup(wandb.Settings(silent=True)).settings


def problem() -> str | None:
    """Return why nothing could be logged: W&B would ask for a key, or refuse it. None if it could. Sends nothing."""
    try:
        settings = _settings()
        known = settings.api_key or wbauth.read_netrc_auth(host=settings.base_url)
        if known:
            wbauth.AuthApiKey(host=wbauth.HostUrl(settings.base_url), api_key=known)  # Checks its form.
    except (wandb.errors.Error, ValueError) as error:
        return " ".join(str(error).split())
    if known or settings.identity_token_file or settings.mode in ("offline", "disabled", "dryrun"):
        return None
    return "W&B has no key of yours; run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline to send later"
