"""Floating-point operations of one image's forward pass, by the parameter that they multiply with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dynsparse.models import shapes


@dataclass(frozen=True)
class Counted:
    """FLOPs of a forward pass of one image through the dense network. A multiply-add is two."""

    by_parameter: Mapping[str, int]
    """FLOPs of products with a parameter, or with what was computed from parameters alone."""
    rest: int
    """FLOPs of products of activations, such as attention's."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_parameter.values()) + self.rest


def count(model: nn.Module, image_shape: tuple[int, int, int]) -> Counted | None:
    """Count the FLOPs of convolutions and matrix products, by torch's own formulas.

    Shapes alone are computed, on the meta device. Norms, activations and biases are left out, as in RigL's paper. None
    for a model that cannot run without data, and for one without such products.
    """
    tensors = shapes.on_meta(model)
    counter = _Counter({name: tensors[name] for name, _ in model.named_parameters()})
    try:
        with counter:
            shapes.forward(model, tensors, image_shape)
    except Exception:  # noqa: BLE001 - a forward of anybody's, whose faults show in training
        return None
    counted = Counted(counter.by_parameter, counter.rest)
    return counted if counted.total else None


class _Counter(TorchDispatchMode):
    """Sees each operator of a forward pass."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_parameter: dict[str, int] = {}
        self.rest = 0
        self._sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        # Storages, not tensors: operators get views, such as a transposed weight. They are held, so that no other
        # storage takes the number of one.
        self._held: list[Tensor] = []
        self._names: dict[int, str] = {}
        for name, tensor in parameters.items():
            self._note(tensor, name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        names = [self._names.get(_storage(tensor)) for tensor in _tensors((args, kwargs))]
        known = [name for name in names if name is not None]
        largest = max(known, key=self._sizes.__getitem__, default=None)
        if func._overloadpacket in flop_registry:
            self._add(largest, int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)))
        elif largest is not None and len(known) == len(names):
            # Computed from parameters alone, as a standardised weight is: it stands for the largest of them.
            for tensor in _tensors(out):
                self._note(tensor, largest)
        return out

    def _add(self, name: str | None, flops: int) -> None:
        if name is None:
            self.rest += flops
        else:
            self.by_parameter[name] = self.by_parameter.get(name, 0) + flops

    def _note(self, tensor: Tensor, name: str) -> None:
        if _storage(tensor) not in self._names:
            self._names[_storage(tensor)] = name
            self._held.append(tensor)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
