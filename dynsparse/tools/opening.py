"""Opening a checkpoint to inspect or export it: read, validated, and built into a network. Needs no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynsparse import files
from dynsparse.config.loading import parse
from dynsparse.config.schema import RunConfig
from dynsparse.distributed.digest import mask_digest, weight_digest
from dynsparse.errors import UserError
from dynsparse.shrinking.kept import shrinkages_in
from dynsparse.training.checkpoint import read_run
from dynsparse.training.compatibility import require_same_layers
from dynsparse.training.network import Network, build_network
from dynsparse.training.older import with_layers_of
from dynsparse.training.packing import mean_buffers, unpack_buffers, unpack_weights
from dynsparse.training.preflight import require_model_of
from dynsparse.training.progress import is_of_now
from dynsparse.training.run import names
from dynsparse.training.state import versions
from pipelines.common.text import one_line


@dataclass(frozen=True)
class Opened:
    """A valid checkpoint whose parts agree with each other."""

    path: Path
    saved: Mapping[str, Any]
    config: RunConfig
    network: Network
    """The network on the CPU, with the checkpoint's masks and weights. BatchNorm statistics are the mean over ranks."""
    mask_digest: str
    weight_digest: str
    """Digests as in summary.json, 16 hexadecimal digits each."""
    is_average: bool = False
    """True where the network has the average of the weights."""

    @property
    def step(self) -> int:
        """Optimizer steps of the run when it was saved."""
        return int(self.saved["progress"]["step"])

    @property
    def input(self) -> Mapping[str, Any]:
        """The network's input and classes (`network_input`); for older checkpoints, the part that the config knows."""
        found: Mapping[str, Any] | None = self.saved.get("input")
        return found or {"shape": list(self.config.data.image_shape), "number_of_classes": self.config.data.classes}

    @property
    def test_top1(self) -> float | None:
        """Accuracy of this network on the test data, in percent; None if it was measured on earlier weights."""
        progress = self.saved["progress"]
        found: float | None = progress.get("ema_test_top1" if self.is_average else "test_top1")
        return found if is_of_now(progress) else None

    def summary(self) -> Mapping[str, Any] | None:
        """Return the run's summary.json, if the run ended at this checkpoint's step, else None.

        None too if the network has lost channels after that step.
        """
        content, now = _summary(self.path), self.network.parameters
        if content is None or content.get("steps") != self.step or content.get("parameters", now) != now:
            return None
        return content


@contextmanager
def looking_up(source: str | Path) -> Iterator[None]:
    """Raise UserError for a file that may not be read, such as one in another user's folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"checkpoint {source}: cannot be read ({error.strerror}); allow it, or copy the run") from None


def open_checkpoint(path: Path) -> Opened:
    """Open a checkpoint. Raises UserError, a line for each fault, if it is missing, damaged or inconsistent."""
    with looking_up(path):
        saved = read_run(path)
    config = _config(path, saved)
    try:
        require_model_of(config, saved)
        network = build_network(config, torch.device("cpu"), shrinkages=shrinkages_in(saved))
        require_same_layers(saved, config, network.model, network.masks)
    except UserError as error:
        raise UserError(*(one_line(f"checkpoint {path}: {line}") for line in error.lines)) from None
    found = list(not_finite(saved))
    if not found:
        _load(network, saved)
        opened = Opened(path, saved, config, network, *_digests(network))
        found = _against_summary(opened)
    if found:
        raise UserError(*(one_line(f"checkpoint {path}: {one}; use an earlier one of the run") for one in found))
    return opened


def averaged(opened: Opened) -> Opened:
    """Return the same with the average of the weights in the network. UserError if the run kept none."""
    network, saved = opened.network, opened.saved
    if "ema" not in saved:
        raise UserError(f"checkpoint {opened.path}: has no average of the weights; train with train.ema, or omit --ema")
    unpack_weights(network.model, network.masks, saved["ema"]["weights"])
    unpack_buffers(network.model, mean_buffers([rank["ema_buffers"] for rank in saved["ranks"]]))
    return replace(opened, weight_digest=_digests(network)[1], is_average=True)


def _config(path: Path, saved: Mapping[str, Any]) -> RunConfig:
    try:
        return with_layers_of(parse(saved["config"], source="its config", run_code=False), saved)
    except UserError as error:
        theirs, ours = saved["versions"].get("dynsparse"), versions()["dynsparse"]
        raise UserError(
            *(one_line(f"checkpoint {path}: {line}") for line in error.lines),
            one_line(f"checkpoint {path}: written by dynsparse {theirs}, this is {ours}; use that version"),
        ) from None


def not_finite(saved: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each stored tensor of weights, moments or statistics that has NaN or inf."""
    initial, average = saved.get("initial_weights", {}), saved.get("ema", {}).get("weights", {})
    stored = [(f"{name}: weights", value) for name, value in saved["weights"].items()]
    stored += [(f"{name}: {key}", value) for name, state in saved["optimizer"].items() for key, value in state.items()]
    stored += [(f"{name}: initial weights", value) for name, value in initial.items()]
    stored += [(f"{name}: averaged weights", value) for name, value in average.items()]
    for number, rank in enumerate(saved["ranks"]):
        buffers = [*rank["buffers"].items(), *(rank.get("ema_buffers") or {}).items()]
        stored += [(f"{name}: of rank {number}", value) for name, value in buffers]
    for what, value in stored:
        wrong = int((~value.isfinite()).count_nonzero()) if isinstance(value, Tensor) else 0
        if wrong:
            yield f"{what}: {wrong:,} of {value.numel():,} values are NaN or inf"


def _load(network: Network, saved: Mapping[str, Any]) -> None:
    network.masks.load_state_dict(saved["masks"])
    unpack_weights(network.model, network.masks, saved["weights"])
    unpack_buffers(network.model, mean_buffers([rank["buffers"] for rank in saved["ranks"]]))
    network.model.eval()
    network.masks.check()


def _digests(network: Network) -> tuple[str, str]:
    return f"{mask_digest(network.masks):016x}", f"{weight_digest(network.model, network.masks):016x}"


def _against_summary(opened: Opened) -> list[str]:
    """Return a line for each digest that differs from the one on which the run's ranks agreed in the end."""
    summary = opened.summary() or {}
    return [
        f"its {what.replace('_', ' ')} is {ours}, that of summary.json {summary[what]}"
        for what, ours in (("mask_digest", opened.mask_digest), ("weight_digest", opened.weight_digest))
        if summary.get(what, ours) != ours
    ]


def _summary(path: Path) -> Mapping[str, Any] | None:
    """Return the summary.json of the run that a checkpoint lies in; None for one that was set aside (*.stale)."""
    if path.absolute().parent.name != names.CHECKPOINTS or path.suffix != ".pt":
        return None
    try:
        return files.json_object(files.read_bytes(path.absolute().parents[1] / names.SUMMARY))
    except (OSError, ValueError):
        return None
