"""Networks: a model and its masks, built from a config, and the table that describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, SparseLayer, sparse_layers
from dynsparse.masks.allocation import ALLOCATIONS
from dynsparse.masks.granularity import Kind
from dynsparse.masks.tying import TiedLayer
from dynsparse.methods import Method, MethodSettings
from dynsparse.runtime import memory
from dynsparse.seeds import seed_for
from dynsparse.tables import align
from dynsparse.training.sources import NOTHING, Sources


@dataclass
class Network:
    """A model and the masks beside it."""

    model: nn.Module
    masks: MaskSet
    tied: Sequence[TiedLayer] = ()
    """Layers whose weights share values instead of being masked."""
    initial_weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Whole weights of the masked layers before they were masked, on the CPU. The initial checkpoint alone has them."""

    @property
    def layers(self) -> Sequence[SparseLayer | TiedLayer]:
        """The masked layers, then the tied ones."""
        return [*self.masks, *self.tied]

    @property
    def active_weights(self) -> int:
        """Number of free values in the sparse or tied layers."""
        return sum(layer.active_weights for layer in self.layers)

    @property
    def sparse_layer_weights(self) -> int:
        """Number of weights in these layers, active or not."""
        return sum(layer.spec.weights for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in these layers. The whole model's is lower where it has dense layers."""
        return 1 - self.active_weights / self.sparse_layer_weights if self.layers else 0.0

    @property
    def total_parameters(self) -> int:
        """Number of parameters of the model, with tied layers counted as if they were untied."""
        saved = sum(layer.spec.weights - layer.active_weights for layer in self.tied)
        return sum(parameter.numel() for parameter in self.model.parameters()) + saved

    @property
    def model_sparsity(self) -> float:
        """Fraction of all the model's parameters that are held at 0, or saved by tying."""
        return (self.sparse_layer_weights - self.active_weights) / self.total_parameters

    def table(self) -> str:
        """Text of the sparse layers with shape, unit, sparsity and active weights, and of both totals."""
        rows: list[tuple[str, ...]] = [("layer", "shape", "unit", "sparsity", "active", "weights")]
        for layer in self.layers:
            spec = layer.spec
            shape, unit = "x".join(map(str, spec.shape)), "x".join(map(str, spec.shape[spec.mask_dims :])) or "1"
            rows.append((spec.name, shape, unit, *_counts(layer.active_weights, spec.weights)))
        active, weights, total = self.active_weights, self.sparse_layer_weights, self.total_parameters
        for name, left, of in (
            ("tied layers" if self.tied else "sparse layers", active, weights),
            ("whole model", total - weights + active, total),
        ):
            rows.append((name, "", "", *_counts(left, of)))
        return align(rows)


def _counts(active: int, weights: int) -> tuple[str, str, str]:
    """Sparsity, active weights and all weights as text."""
    return f"{100 * (1 - active / max(1, weights)):.2f} %", f"{active:,}", f"{weights:,}"


def build_network(config: RunConfig, device: torch.device, sources: Sources = NOTHING) -> Network:
    """Build the model on its device, initialised and masked by the config's seed: the same on every rank.

    `sources` are other runs' weights and masks to start from. This seeds torch's global generator and draws from it.
    UserError for patterns that match no layer, and for sources that do not fit.
    """
    torch.manual_seed(seed_for(config.seed, "fresh") if sources.wants_fresh_weights else config.seed)
    model = _model(config)
    specs = layer_specs(config, model)
    sources.load_weights(model)
    model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    counts = _active_units(config, specs)
    if config.method.starts == "tied":
        tied = [config.method.tie(model, spec, counts[spec.name], seed=config.seed) for spec in specs]
        return Network(model, MaskSet(model, [], {}), tied)
    active = sources.active_units(specs) or counts
    whole = dict(model.named_parameters())
    initial = {
        spec.name: whole[spec.name].detach().to("cpu", copy=True)
        for spec in specs
        if _count(active[spec.name]) < spec.units
    }
    return Network(model, MaskSet(model, specs, active, seed=config.seed), initial_weights=initial)


def build_without_weights(config: RunConfig) -> nn.Module:
    """Build the config's model on torch's meta device, without memory. UserError if torch cannot build it."""
    with torch.device("meta"):
        return _model(config)


def _model(config: RunConfig) -> nn.Module:
    try:
        return config.model.build(config.data.image_shape, config.data.classes)
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it takes too much memory"
        raise UserError(f"model: cannot be built ({reason}); make it smaller") from None


def _active_units(config: RunConfig, specs: Sequence[LayerSpec]) -> dict[str, int]:
    """Active units of each layer at the start, as the config's sparsity and method say."""
    share: dict[Kind, float] = {"conv": config.sparsity.conv, "fc": config.sparsity.fc}
    if config.method.starts == "dense":
        share = {"conv": 0.0, "fc": 0.0}
    return ALLOCATIONS[config.sparsity.allocation](specs, share)


def _count(active: int | Tensor) -> int:
    return active if isinstance(active, int) else active.numel()


def require_layers(config: RunConfig) -> None:
    """Raise UserError for patterns that match no layer, and for layers that the method cannot work on.

    Takes no memory: the model is built without weights.
    """
    model = build_without_weights(config)
    _require_memory(config, model)
    with torch.device("meta"):
        specs = layer_specs(config, model)
        counts = _active_units(config, specs)
    if config.start.masks_from is None:  # Those decide how much is active: see `preflight.require_usable_sources`.
        build_method(config, specs).check(specs, counts)


def _require_memory(config: RunConfig, model: nn.Module) -> None:
    """Raise UserError for a model whose weights and gradients alone exceed this machine's memory."""
    parameters, most = sum(parameter.numel() for parameter in model.parameters()), memory()
    if most is not None and 8 * parameters > most:
        raise UserError(
            f"model {config.model.name} would have {parameters:,} parameters, {8 * parameters / 1e9:,.0f} GB with "
            f"their gradients; this machine has {most / 1e9:,.1f} GB: make it smaller, or its images or classes fewer"
        )


def build_method(config: RunConfig, specs: Sequence[LayerSpec]) -> Method:
    """Build the config's method for these layers."""
    return method_settings(config, specs).build()


def method_settings(config: RunConfig, specs: Sequence[LayerSpec]) -> MethodSettings:
    """The config's method, with what the model advises for these layers unless the config says it."""
    limits = config.model.pruning_limits()
    return config.method.with_limits({spec.name: limits[spec.name] for spec in specs if spec.name in limits})


def layer_specs(config: RunConfig, model: nn.Module) -> list[LayerSpec]:
    """Layers of the config's model that it asks to be sparse."""
    sparsity = config.sparsity
    share: dict[Kind, float] = {"conv": sparsity.conv, "fc": sparsity.fc}
    kinds = [kind for kind, value in share.items() if value > 0 or config.method.starts == "dense"]
    specs = sparse_layers(
        model,
        default=config.model.sparse_by_default(model),
        include=sparsity.include,
        exclude=sparsity.exclude,
        granularity=sparsity.granularity,
        kinds=kinds,
    )
    if sparsity.granularity != 4 and not any(spec.kind == "conv" for spec in specs):
        raise UserError(
            f"sparsity.granularity is {sparsity.granularity}; {config.model.name} has no sparse convolution here, and "
            f"linear layers are always elementwise: leave it at 4"
        )
    return specs
