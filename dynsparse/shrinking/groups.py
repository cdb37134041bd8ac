"""Groups of channels that belong together, by torch-pruning's graph of dependencies.

Channels that a residual connection adds are one group: none goes without the others. A group has writers, layers whose
outputs they are, and readers, layers that take them as inputs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from pipelines.common.extras import install_command

LAYERS = (nn.Conv2d, nn.Linear)
COMPACT = "it cannot be made compact"
OUTPUTS = "they are the network's outputs"
MOST_BYTES = 1 << 29
"""Memory that finding the groups of a network may take."""
PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d)
"""Modules with parameters that do to each channel something of its own."""
MIXING = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm, nn.Softmax, nn.Softmax2d, nn.LogSoftmax)
"""Modules that may do to a channel something that depends on others, with parameters or without."""
_PLAIN_TOO = ("timm.layers.conv2d_same.Conv2dSame",)
"""Layers with a forward of their own that multiply by the weight as it is."""


@dataclass(frozen=True)
class Side:
    """A layer that writes or reads the channels of a group."""

    name: str
    module: nn.Module
    places: Tensor
    """Rows of the weight, for a writer, or columns, for a reader: int64. A channel may have several."""
    channels: Tensor
    """The group's channel at each of the places: int64, as long."""


@dataclass(frozen=True)
class Group:
    """Channels that go together."""

    root: str
    """The layer that it is told by."""
    size: int
    """Number of channels."""
    writers: Sequence[Side]
    readers: Sequence[Side]
    followers: Sequence[Side]
    """Modules that do to each channel something of its own: norms, depthwise convolutions. Rows alone."""
    obstacle: str
    """Reason to leave it alone, empty where there is none."""

    @property
    def least(self) -> int:
        """Fewest channels that it can have: a depthwise convolution of one channel would be an ordinary one."""
        return 2 if any(isinstance(side.module, nn.Conv2d) for side in self.followers) else 1


class Graph:
    """The groups of a network. It is built anew when channels have been taken out."""

    def __init__(self, model: nn.Module, images: Tensor, *, limited: bool = True, so: str = COMPACT) -> None:
        """Trace the model on `images`, float32, (batch, channels, height, width). Raises UserError where that fails.

        Both may lie on the meta device. Memory is `limited`, for the whole process, until it is done. `so`: words for
        what follows from a failure.
        """
        self._graph = pruning_library().DependencyGraph()
        model.requires_grad_(True)  # torch-pruning follows what autograd has recorded.
        with warnings.catch_warnings(), little_memory() if limited else nullcontext():
            warnings.simplefilter("ignore")  # Of parameters outside modules: their groups are left alone.
            try:
                self._graph.build_dependency(model, example_inputs=images)
                self._groups = list(self._graph.get_all_groups(root_module_types=list(LAYERS)))
            except Exception as error:  # As many kinds as there are networks.
                raise UserError(f"torch-pruning cannot follow the network ({_reason(error)}); {so}") from error
        self._modules = dict(model.named_modules())
        self._names = {module: name for name, module in self._modules.items()}

    def __iter__(self) -> Iterator[Group]:
        return map(self._group, self._groups)

    def remove(self, group: Group, channels: Sequence[int]) -> None:
        """Take channels out of all layers of a group, in place. Other groups keep their numbers."""
        root = self._modules[group.root]
        act = self._graph.get_pruner_of_module(root).prune_out_channels
        self._graph.get_pruning_group(root, act, idxs=list(channels)).prune()

    def _group(self, items: Any) -> Group:
        root = items[0]
        writers: list[Side] = []
        readers: list[Side] = []
        followers: list[Side] = []
        obstacle = ""
        for item in items:
            module, reads = item.dep.target.module, "in_channels" in item.dep.handler.__name__
            name = self._names.get(module, item.dep.target.name)
            if isinstance(module, LAYERS) and not _is_depthwise(module):
                obstacle = obstacle or _grouped(name, module) or _peculiar(name, module)
                (readers if reads else writers).append(_side(name, module, item))
            elif isinstance(module, pruning_library().ops._OutputOp):
                obstacle = obstacle or OUTPUTS
            elif not _is_per_channel(module):
                obstacle = obstacle or f"{name} ({type(module).__name__}) may mix channels"
            elif next(module.parameters(), None) is not None or isinstance(module, PER_CHANNEL):
                followers.append(_side(name, module, item))
        obstacle = obstacle or ("" if readers else OUTPUTS)  # Outputs that are read as well are marked above.
        name = self._names[root.dep.target.module]
        return Group(name, len(root.idxs), writers, readers, followers, obstacle)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError) or "can't allocate" in str(error):
        return f"it takes more than {MOST_BYTES >> 20} MiB"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def little_memory() -> Iterator[None]:
    """Allow no more than `MOST_BYTES` beyond what the process has: in windows of attention lists of places multiply."""
    if sys.platform != "linux":
        yield
        return
    import resource  # Only here: other systems have none.

    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    lower = [taken + MOST_BYTES, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(lower), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def pruning_library(whatever: str = "a compact network") -> Any:
    """Import torch-pruning. Raises UserError, which says what needs it, where it is not installed."""
    try:
        return import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{whatever} needs {error.name}, which is not installed; {install_command('export')}, or make setup"
        ) from None


def _side(name: str, module: nn.Module, item: Any) -> Side:
    places, channels = (torch.as_tensor(list(numbers), dtype=torch.int64) for numbers in (item.idxs, item.root_idxs))
    return Side(name, module, places, channels)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _is_per_channel(module: object) -> bool:
    """Return whether it does to each channel something of its own. A function without parameters is taken to do so."""
    if isinstance(module, (nn.Parameter, *MIXING)):
        return False
    return isinstance(module, (*PER_CHANNEL, nn.Conv2d)) or next(module.parameters(), None) is None  # type: ignore[attr-defined]


def _peculiar(name: str, module: nn.Module) -> str:
    """Say why a layer may not multiply by its weight as it is; empty if it does."""
    kind = type(module)
    plain = kind.forward in (nn.Conv2d.forward, nn.Linear.forward) or f"{kind.__module__}.{kind.__name__}" in _PLAIN_TOO
    if plain and module._parameters.keys() <= {"weight", "bias"} and "weight" in module._parameters:
        return ""
    return f"{name} ({kind.__name__}) may use another weight than it holds"


def _grouped(name: str, module: nn.Module) -> str:
    grouped = isinstance(module, nn.Conv2d) and module.groups > 1
    return f"{name} has groups of channels" if grouped else ""
