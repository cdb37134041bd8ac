"""A checkpoint opened to be looked at or taken away: read, checked, and put together as a network. No data needed."""

from __future__ import annotations

import json
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynsparse.config import RunConfig, parse
from dynsparse.distributed.digest import mask_digest, weight_digest
from dynsparse.errors import UserError
from dynsparse.tools.invariants import problems
from dynsparse.training.folder import read_run
from dynsparse.training.network import Network, build_network
from dynsparse.training.packing import mean_buffers, unpack_buffers, unpack_weights
from dynsparse.training.state import versions


@dataclass(frozen=True)
class Opened:
    """A whole checkpoint whose parts agree with each other."""

    path: Path
    saved: Mapping[str, Any]
    config: RunConfig
    network: Network
    """On the CPU, with the checkpoint's masks and weights; BatchNorm statistics are the mean over the ranks."""
    mask_digest: str
    weight_digest: str
    """Of both, 16 hexadecimal digits, as in summary.json."""

    @property
    def step(self) -> int:
        return int(self.saved["progress"]["step"])

    def summary(self) -> Mapping[str, Any] | None:
        """The run's summary.json, if it tells of this very state: of the step at which the run ended."""
        content = _summary(self.path)
        return content if content is not None and content.get("steps") == self.step else None


def run_of(source: str) -> str:
    """`source` as `checkpoint_of` takes it: of a run's checkpoints/ folder the run. UserError if it is empty."""
    if not source:
        raise UserError("CKPT is empty; name a checkpoint, or a run's folder, such as runs/digits_dsr")
    path = Path(source)
    if path.is_dir() and path.absolute().name == "checkpoints" and not (path / "checkpoints").is_dir():
        return str(path.parent if path.name else path.absolute().parent)  # "." has no name.
    return source


@contextmanager
def looking_up(source: str | Path) -> Iterator[None]:
    """UserError for what may not be looked at, such as what lies in another user's folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"checkpoint {source}: cannot be read ({error.strerror}); allow it, or copy the run") from None


def open_checkpoint(path: Path) -> Opened:
    """UserError, a line for each thing that is wrong, for what cannot be had, is damaged, or does not hold together."""
    with looking_up(path):
        problem = archive_problem(path)
    if problem:
        raise UserError(f"checkpoint {path}: {problem}; use an earlier one of the run, or another")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of torch, that what it finds in another file is in beta.
        saved = read_run(path)
    config = _config(path, saved)
    try:
        network = build_network(config, torch.device("cpu"))
        found = problems(saved, network)
    except UserError as error:
        raise UserError(*(f"checkpoint {path}: {line}" for line in error.lines)) from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        found = [f"its parts are not as dynsparse writes them ({type(error).__name__}: {error})"]
    if not found:
        _load(network, saved)
        opened = Opened(path, saved, config, network, *_digests(network))
        found = _against_summary(opened)
    if found:
        raise UserError(*(f"checkpoint {path}: {problem}; use an earlier one of the run" for problem in found))
    return opened


def archive_problem(path: Path) -> str | None:
    """What is wrong with the file as an archive, as far as that tells. None for one that is not there.

    OSError if it may not be read.
    """
    if not path.is_file():
        return None
    path.open("rb").close()  # Else it would pass for no archive.
    if not zipfile.is_zipfile(path):
        return "is empty" if path.stat().st_size == 0 else "is no archive: cut short, or no checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        return f"is damaged ({error})"
    return None if damaged is None else f"is damaged in its entry {damaged}"


def _config(path: Path, saved: Mapping[str, Any]) -> RunConfig:
    try:
        return parse(saved["config"], source="its config")
    except UserError as error:
        theirs, ours = saved["versions"].get("dynsparse"), versions()["dynsparse"]
        raise UserError(
            *(f"checkpoint {path}: {line}" for line in error.lines),
            f"checkpoint {path}: written by dynsparse {theirs}, this is {ours}; use the version that wrote it",
        ) from None


def _load(network: Network, saved: Mapping[str, Any]) -> None:
    network.masks.load_state_dict(saved["masks"])
    unpack_weights(network.model, network.masks, saved["weights"])
    unpack_buffers(network.model, mean_buffers([rank["buffers"] for rank in saved["ranks"]]))
    network.model.eval()
    network.masks.check()


def _digests(network: Network) -> tuple[str, str]:
    return f"{mask_digest(network.masks):016x}", f"{weight_digest(network.model, network.masks):016x}"


def _against_summary(opened: Opened) -> list[str]:
    """Masks and weights are those that the run's ranks agreed on as it ended."""
    summary = opened.summary() or {}
    return [
        f"its {what.replace('_', ' ')} is {ours}, that of summary.json {summary[what]}"
        for what, ours in (("mask_digest", opened.mask_digest), ("weight_digest", opened.weight_digest))
        if summary.get(what, ours) != ours
    ]


def _summary(path: Path) -> Mapping[str, Any] | None:
    """Of the run in whose checkpoints/ the file lies. What was set aside (*.stale) is of a history it does not tell."""
    if path.absolute().parent.name != "checkpoints" or path.suffix != ".pt":
        return None
    try:
        content = json.loads((path.absolute().parents[1] / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
