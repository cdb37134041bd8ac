"""Multiples of the dense network's FLOPs: at given numbers of active weights, in inference and in training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from dynsparse.flops.counting import count
from dynsparse.masks import LayerSpec, naming
from dynsparse.methods import Method
from dynsparse.methods.clock import Schedule


class _Layer(Protocol):
    """A sparse layer, as far as it is read here."""

    @property
    def spec(self) -> LayerSpec: ...
    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> Tensor: ...


@dataclass(frozen=True)
class Costs:
    """FLOPs of one image by the rules of RigL's paper (Evci et al. 2020, appendix H).

    A layer's FLOPs fall with its density. With f the forward pass at the densities of now and f_D the dense one, a
    step takes f forward, f for the gradients of activations, and f for those of weights, or f_D where the method reads
    gradients of inactive weights too. A dense step takes 3 f_D.
    """

    dense: int
    """f_D."""
    layers: Mapping[str, tuple[int, int]]
    """FLOPs of each sparse layer if it were dense, and its weights."""
    at_start: int = 0
    """f_D of the dense network before it lost channels (`train.shrink`); 0 if it has all of them."""

    @staticmethod
    def of(model: nn.Module, layers: Iterable[_Layer], image_shape: tuple[int, int, int]) -> Costs | None:
        """Count the model's FLOPs. None where they cannot be counted (`counting.count`)."""
        counted = count(model, image_shape)
        if counted is None:
            return None
        parameters = naming.named_parameters(model)
        holders = {parameter.untyped_storage()._cdata: name for name, parameter in parameters.items()}
        found = {}
        for layer in layers:
            # A layer may be a part of a parameter, as attention's query is.
            name = layer.name if layer.name in parameters else holders.get(layer.weight.untyped_storage()._cdata, "")
            flops, weights = counted.by_parameter.get(name, 0), layer.spec.weights
            found[layer.name] = (flops * weights // parameters[name].numel() if flops else 0, weights)
        return Costs(counted.total, found)

    @property
    def reference(self) -> int:
        """FLOPs of the dense network that multiples are of: that of the start."""
        return self.at_start or self.dense

    def layer(self, name: str, active: int) -> int:
        """FLOPs of a sparse layer with so many active weights."""
        flops, weights = self.layers[name]
        return flops * active // weights

    def inference(self, active: Mapping[str, int]) -> int:
        """f: FLOPs of a forward pass, given the active weights of each sparse layer."""
        return self.dense - sum(flops - self.layer(name, active[name]) for name, (flops, _) in self.layers.items())

    def step(self, active: Mapping[str, int], *, whole: bool) -> int:
        """FLOPs of a training step, in which the method reads `whole` gradients or those of active weights."""
        forward = self.inference(active)
        return 2 * forward + (self.dense if whole else forward)


def whole_steps(method: Method, schedule: Schedule) -> float:
    """Fraction of a run's steps in which the method reads gradients of inactive weights too."""
    if not (method.observes or method.grows_by_gradient):
        return 0.0
    steps = range(1, schedule.total_steps + 1)
    return sum(method.wants_whole_gradients(schedule.clock(step)) for step in steps) / schedule.total_steps
