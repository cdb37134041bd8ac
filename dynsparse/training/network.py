"""Networks: a model and its masks, built from a config, and the table that describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.first_masks import ScoredMasks
from dynsparse.flops import Costs
from dynsparse.flops.counting import count
from dynsparse.masks import LayerSpec, MaskSet, SparseLayer, sparse_layers
from dynsparse.masks.allocation import allocated
from dynsparse.masks.magnitude import largest_units
from dynsparse.masks.structure import require_structure
from dynsparse.masks.tying import TiedLayer
from dynsparse.methods import Aim, Method, MethodSettings
from dynsparse.methods.base import require_method
from dynsparse.methods.clock import Schedule
from dynsparse.optimizers import parameter_groups
from dynsparse.runtime import memory
from dynsparse.seeds import seed_for
from dynsparse.shrinking.channels import channel_groups
from dynsparse.shrinking.kept import Kept, Shrinkage, apply_all
from dynsparse.shrinking.shrunk_masks import ShrunkMasks, shrunk_masks
from dynsparse.training.dense import DenseWeight, asked_for, dense_weights, kinds_of, split_of
from dynsparse.training.freezing import freeze, frozen_names, warn_of_random_masks
from dynsparse.training.layer_table import LayerTable
from dynsparse.training.sources import NOTHING, Sources

Parameters = Mapping[nn.Parameter, tuple[nn.Parameter, Kept]]
"""New parameters by the old ones, and what is kept of each."""


@dataclass(frozen=True)
class Start:
    """A network before it lost channels (`train.shrink`): sparsity and FLOPs are told against it."""

    layers: Mapping[str, LayerSpec]
    """The sparse layers, by name."""
    total_parameters: int
    model: nn.Module
    """The model, without weights."""


@dataclass
class Network:
    """A model and the masks beside it."""

    model: nn.Module
    masks: MaskSet
    tied: Sequence[TiedLayer] = ()
    """Layers whose weights share values instead of being masked."""
    initial_weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Whole weights of the masked layers before they were masked, on the CPU. The initial checkpoint alone has them."""
    dense: Sequence[DenseWeight] = ()
    """Weights that stay dense, with the reasons."""
    asked: str = ""
    """Words for the zeros that the config asks for in the sparse layers, at the end of the run."""
    image_shape: tuple[int, int, int] | None = None
    """Channels, height and width of an input; None: FLOPs cannot be counted."""
    start: Start | None = None
    """The network as it was at the start; None if it is that still."""
    shrinkages: tuple[Shrinkage, ...] = ()
    """Records of the channels that it has lost, in order."""

    _costs: dict[tuple[int, int, int], Costs | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def costs(self) -> Costs | None:
        """FLOPs of the model on one image; None where they cannot be counted."""
        return None if self.image_shape is None else self.costs_at(self.image_shape)

    def costs_at(self, image_shape: tuple[int, int, int]) -> Costs | None:
        """FLOPs on one image of another size, which training may use; None where they cannot be counted."""
        if self.image_shape is None:
            return None
        if image_shape not in self._costs:
            self._costs[image_shape] = self._counted(image_shape)
        return self._costs[image_shape]

    def _counted(self, image_shape: tuple[int, int, int]) -> Costs | None:
        found = Costs.of(self.model, self.masks, image_shape)
        if found is None or self.start is None:
            return found
        whole = count(self.start.model, image_shape)
        return None if whole is None else replace(found, at_start=whole.total)

    def shrink(self, shrinkage: Shrinkage, config: RunConfig) -> tuple[Parameters, ShrunkMasks]:
        """Take channels out of the model, in place, and make new masks.

        Returns the new parameters, and the masks with what has grown in them. `note` does for a shrink of nothing.
        """
        if self.start is None:
            specs = {layer.name: layer.spec for layer in self.masks}
            self.start = Start(specs, self.total_parameters, build_without_weights(config))
        parameters = shrinkage.apply(self.model)
        shrunk = shrunk_masks(self.masks, self.model, shrinkage, seed=config.seed)
        self.masks = shrunk.masks
        self.shrinkages = (*self.shrinkages, shrinkage)
        self.dense = dense_weights(config, self.model, [layer.spec for layer in self.masks])
        self.initial_weights = {}
        self._costs.clear()
        return parameters, shrunk

    def note(self, shrinkage: Shrinkage) -> None:
        """Take note of a shrink that found no channel to take out."""
        self.shrinkages = (*self.shrinkages, shrinkage)

    @property
    def inference_flops(self) -> int | None:
        """FLOPs of a forward pass of one image, at the densities of now. Tied layers count as dense ones."""
        return None if self.costs is None else self.costs.inference(self._active)

    @property
    def inference_flops_of_dense(self) -> float | None:
        """FLOPs of a forward pass over those of the dense network at the start."""
        return None if self.costs is None else self.costs.inference(self._active) / self.costs.reference

    def step_flops(self, costs: Costs, *, whole: bool) -> int:
        """FLOPs of a training step, for each image (`Costs.step`), at the densities of now."""
        return costs.step(self._active, whole=whole)

    @property
    def _active(self) -> dict[str, int]:
        return {layer.name: layer.active_weights for layer in self.masks}

    @property
    def layers(self) -> Sequence[SparseLayer | TiedLayer]:
        """The masked layers, then the tied ones."""
        return [*self.masks, *self.tied]

    @property
    def active_weights(self) -> int:
        """Number of free values in the sparse or tied layers."""
        return sum(layer.active_weights for layer in self.layers)

    @property
    def specs_at_start(self) -> list[LayerSpec]:
        """These layers as they were at the start."""
        known = {} if self.start is None else self.start.layers
        return [known.get(layer.name, layer.spec) for layer in self.layers]

    @property
    def sparsity_of_layers(self) -> dict[str, float]:
        """Fraction of each layer's weights at the start that are 0, or gone with their channels."""
        pairs = zip(self.layers, self.specs_at_start, strict=True)
        return {layer.name: 1 - layer.active_weights / spec.weights for layer, spec in pairs}

    @property
    def sparse_layer_weights(self) -> int:
        """Number of weights in these layers at the start, active or not."""
        return sum(spec.weights for spec in self.specs_at_start)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in these layers, what is gone among them. The whole model's is lower where it is dense."""
        return 1 - self.active_weights / self.sparse_layer_weights if self.layers else 0.0

    @property
    def total_parameters(self) -> int:
        """Number of parameters of the model at the start, with tied layers counted as if they were untied."""
        return self.parameters if self.start is None else self.start.total_parameters

    @property
    def parameters(self) -> int:
        """Number of parameters of the model now, with tied layers counted as if they were untied."""
        saved = sum(layer.spec.weights - layer.active_weights for layer in self.tied)
        return sum(parameter.numel() for parameter in self.model.parameters()) + saved

    @property
    def model_sparsity(self) -> float:
        """Fraction of all the model's parameters that are held at 0, gone from sparse layers, or saved by tying."""
        return (self.sparse_layer_weights - self.active_weights) / self.total_parameters

    @torch.no_grad()
    def unmask(self) -> None:
        """Give weights outside the masks their first values back, for a method that keeps them: it masks them next."""
        for layer in self.masks:
            if (whole := self.initial_weights.get(layer.name)) is not None:
                layer.weight.copy_(whole)

    def table(self) -> str:
        """Text of the table of layers: what is sparse, what is not and why, and what the whole model comes to."""
        layers = [(layer.spec, layer.active_weights) for layer in self.layers]
        flops = None if self.costs is None else (self.layer_flops, self.inference_flops or 0)
        table = LayerTable(layers, self.dense, self.asked, self.parameters, tied=bool(self.tied), flops=flops)
        return str(table) if self.start is None else f"{table}\n\n{self.shrunk_line}"

    @property
    def shrunk_line(self) -> str:
        """Line that tells what is left of a network that has lost channels; empty if it has all."""
        if self.start is None:
            return ""
        return (
            f"made smaller while it trained: {self.parameters:,} of {self.total_parameters:,} parameters are left; "
            f"against the network of the start {100 * self.sparsity:.2f} % of the sparse layers are zeros or gone"
        )

    @property
    def layer_flops(self) -> dict[str, int]:
        """FLOPs of each masked layer on one image, at its density of now; empty where they cannot be counted."""
        if self.costs is None:
            return {}
        return {name: self.costs.layer(name, active) for name, active in self._active.items()}


def build_network(
    config: RunConfig, device: torch.device, sources: Sources = NOTHING, shrinkages: Sequence[Shrinkage] = ()
) -> Network:
    """Build the model on its device, initialised and masked by the config's seed: the same on every rank.

    `sources` are other runs' weights and masks to start from. `shrinkages` are those of a checkpoint that is loaded
    next. This seeds torch's global generator and draws from it. UserError for patterns that match no layer, and for
    sources that do not fit.
    """
    network = _whole_network(config, device, sources)
    for one in shrinkages:
        if one.modules:
            network.shrink(one, config)
        else:
            network.note(one)
    return network


def _whole_network(config: RunConfig, device: torch.device, sources: Sources) -> Network:
    torch.manual_seed(seed_for(config.seed, "fresh") if sources.wants_fresh_weights else config.seed)
    model = _model(config)
    specs = layer_specs(config, model)
    sources.load_weights(model)
    counts = _active_units(config, specs)
    active = sources.active_units(config, specs) or _first_units(config, model, specs, counts, sources)
    model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dense, asked = dense_weights(config, model, specs), asked_for(config, {spec.kind for spec in specs})
    if config.method.starts == "tied":
        tied = [config.method.tie(model, spec, counts[spec.name], seed=config.seed) for spec in specs]
        shape = config.data.image_shape
        return Network(model, MaskSet(model, [], {}), tied, dense=dense, asked=asked, image_shape=shape)
    whole = dict(model.named_parameters())
    initial = {
        spec.name: whole[spec.parameter].detach()[spec.rows].to("cpu", copy=True)
        for spec in specs
        if _count(active[spec.name]) < spec.units
    }
    masks = MaskSet(model, specs, active, seed=config.seed)
    freeze(model, config.train.freeze)
    if sources.weights is not None and not isinstance(config.sparsity.initial, ScoredMasks):
        drawn = {spec.parameter for spec in specs if isinstance(n := active[spec.name], int) and n < spec.units}
        warn_of_random_masks(sorted(drawn), model, config.train.freeze)
    shape = config.data.image_shape
    return Network(model, masks, initial_weights=initial, dense=dense, asked=asked, image_shape=shape)


def table_without_weights(config: RunConfig) -> LayerTable:
    """The table of the config's network as it begins, by counting alone: no weight takes memory."""
    model = build_without_weights(config)
    specs = layer_specs(config, model)
    counts = _active_units(config, specs)
    return LayerTable(
        [(spec, counts[spec.name] * spec.unit_size) for spec in specs],
        dense_weights(config, model, specs),
        asked_for(config, {spec.kind for spec in specs}),
        sum(parameter.numel() for parameter in model.parameters()),
        tied=config.method.starts == "tied",
    )


def build_without_weights(config: RunConfig, shrinkages: Sequence[Shrinkage] = ()) -> nn.Module:
    """Build the config's model on torch's meta device, without memory. UserError if torch cannot build it.

    It is made as small as `shrinkages` have made a run's.
    """
    with torch.device("meta"):
        model = _model(config).to("meta")  # Networks of torchvision and timm have their buffers on the CPU.
    apply_all(model, shrinkages)
    return model


def _model(config: RunConfig) -> nn.Module:
    try:
        return config.model.build(config.data.image_shape, config.data.classes)
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it takes too much memory"
        raise UserError(f"model: cannot be built ({reason}); make it smaller") from None


def _active_units(config: RunConfig, specs: Sequence[LayerSpec]) -> dict[str, int]:
    """Active units of each layer at the start, as the config's sparsity and method say."""
    share = config.method.first_sparsity(config.sparsity.shares)
    if config.method.starts == "dense":
        share = {"conv": 0.0, "fc": 0.0}
    return allocated(config.sparsity.allocation, specs, share)


def _first_units(
    config: RunConfig, model: nn.Module, specs: Sequence[LayerSpec], counts: Mapping[str, int], sources: Sources
) -> Mapping[str, int | Tensor]:
    """Active units of each layer: those of largest magnitude where asked for, else as many at random.

    Without weights, as where a checkpoint is loaded next, they are drawn whatever was asked for. Those by score are
    chosen later, with data: see `first_masks.scored`.
    """
    if config.sparsity.initial.name == "magnitude" and sources.weights is not None:
        return largest_units(specs, counts, dict(model.named_parameters()))
    return dict(counts)


def _count(active: int | Tensor) -> int:
    return active if isinstance(active, int) else active.numel()


def require_layers(config: RunConfig) -> None:
    """Raise UserError for patterns that match no layer, and for layers that the method cannot work on.

    Takes no memory: the model is built without weights.
    """
    model = build_without_weights(config)
    _require_memory(config, model)
    frozen_names(model, config.train.freeze)
    with torch.device("meta"):
        specs = layer_specs(config, model)
        counts = _active_units(config, specs)
    if config.start.masks_from is None:  # Those decide how much is active: see `preflight.require_usable_sources`.
        method = build_method(config, specs)
        require_method(method, config.method.name, specs, counts)
        couple(method, config, model, specs)


def require_parameters(config: RunConfig) -> None:
    """Raise UserError for patterns that match no parameter, and for blocks to count where there are none."""
    parameter_groups(build_without_weights(config), config.train.parameters)


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


def couple(method: Method, config: RunConfig, model: nn.Module, specs: Sequence[LayerSpec]) -> None:
    """Tell a method that wants it which channels of the config's model go together. UserError if it can use none."""
    if method.wants_channels:
        shape, name = config.data.image_shape, f"method {config.method.name}"
        method.couple(channel_groups(model, shape, name, limited=True), specs)


def method_settings(config: RunConfig, specs: Sequence[LayerSpec]) -> MethodSettings:
    """The config's method, with what the model advises for these layers unless the config says it."""
    limits = config.model.pruning_limits()
    settings = config.method.with_limits({spec.name: limits[spec.name] for spec in specs if spec.name in limits})
    return settings.knowing(Aim(config.sparsity.shares, config.sparsity.allocation))


def method_without_weights(config: RunConfig, schedule: Schedule) -> Method:
    """Build the config's method for a run of this length, by the shapes of its layers alone."""
    with torch.device("meta"):
        specs = layer_specs(config, _model(config))
        method = build_method(config, specs)
        method.plan(specs, _active_units(config, specs), schedule)
    return method


def layer_specs(config: RunConfig, model: nn.Module) -> list[LayerSpec]:
    """Layers of the config's model that it asks to be sparse."""
    sparsity = config.sparsity
    specs = sparse_layers(
        model,
        default=config.model.sparse_by_default(model),
        include=sparsity.include,
        exclude=sparsity.exclude,
        granularity=sparsity.granularity,
        kinds=kinds_of(config),
        split=split_of(config),
        structure=config.method.pattern(sparsity.structure),
    )
    require_structure(specs, dict(sparsity.shares), sparsity.allocation)
    if not specs and (initial := sparsity.initial.name) != "random":
        raise UserError(
            f"sparsity.initial is {initial}, and {config.model.name} has no layer that is to be sparse: leave it out, "
            f"or make layers sparse (sparsity.conv, fc, include, exclude)"
        )
    if sparsity.granularity != 4 and not any(spec.kind == "conv" for spec in specs):
        raise UserError(
            f"sparsity.granularity is {sparsity.granularity}; {config.model.name} has no sparse convolution here, and "
            f"linear layers are always elementwise: leave it at 4"
        )
    return specs
