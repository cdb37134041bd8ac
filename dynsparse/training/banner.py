"""The lines that a run prints first: where it runs, on which data, and which network it trains."""

from __future__ import annotations

from dynsparse.config.schema import RunConfig
from dynsparse.masks.obstacles import listed
from dynsparse.methods import Method
from dynsparse.methods.dynamic import Dynamic
from dynsparse.runtime import Worker
from dynsparse.training.network import Network
from pipelines.base import Data, SplitSize


def banner_lines(config: RunConfig, network: Network, data: Data, worker: Worker) -> tuple[str, ...]:
    """Two lines. One has name, device, workers, samples and classes of each split, the other the network's size.

    Where more stays dense than biases and norms, a third says what, with the reasons.
    """
    device = next(network.model.parameters()).device
    workers = f"{worker.world_size} worker{'s' * (worker.world_size > 1)} on {device.type}"
    classes = config.data.classes
    splits = ", ".join(_said(name, size, classes) for name, size in data.sizes.items())
    shape = "x".join(map(str, config.data.image_shape))
    first = f"{config.run_name}: {workers}; {config.data.name}: samples: {splits}; {classes:,} classes, images {shape}"
    of_layers = f"{network.active_weights:,} of {network.sparse_layer_weights:,} in {len(network.layers)} sparse layers"
    second = (
        f"{config.model.name} by {config.method.name}: {network.total_parameters:,} parameters; active {of_layers} "
        f"(sparsity {100 * network.sparsity:.2f} %, of the whole model {100 * network.model_sparsity:.2f} %)"
    )
    return first, second, *dense_lines(network)


def dense_lines(network: Network) -> list[str]:
    """One line on the weights that stay dense, by the reasons, or none. `--dry-run` lists each."""
    by_reason: dict[str, list[str]] = {}
    for one in network.dense:
        if one.shape:
            by_reason.setdefault(one.reason, []).append(one.name)
    if not by_reason:
        return []
    return ["stay dense: " + "; ".join(f"{listed(names)} ({reason})" for reason, names in by_reason.items())]


def exploration_lines(method: Method, name: str) -> list[str]:
    """One line on how much of the sparse weights a run will explore by forecast; none where masks do not move."""
    if method.forecast is not None:
        return [str(method.forecast)]
    if not isinstance(method, Dynamic):
        return []
    return [f"no forecast of how much of the sparse weights {name} explores: what an event moves is not known before"]


def _said(name: str, size: SplitSize, classes: int) -> str:
    if size.classes == classes:
        return f"{name} {size.samples:,}"
    return f"{name} {size.samples:,} (of {size.classes:,} class{'es' * (size.classes > 1)} alone)"
