"""A GPU that is none: tensors that say they lie on one, whose numbers the processor holds.

Operations on tensors of both are refused, as torch refuses them on a GPU. So what would stop a run there stops here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""Operations that take tensors of both."""
_INDEXES = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default}
"""Operations whose numbers of places may come from the processor, which costs a copy."""
_ADVANCED = {torch.ops.aten.cat.default, torch.ops.aten.stack.default}
"""Operations that take no single numbers of the processor either."""


class OnGpu(Tensor):
    """A tensor that says it lies on the GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made: OnGpu = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            requires_grad=held.requires_grad,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    def tolist(self) -> Any:
        """Copy the numbers to the host."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Tensors made on the GPU, and its pinned memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


def _done(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    kwargs = dict(kwargs)
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    here = any(isinstance(one, OnGpu) for one in tensors)
    _require_one_device(func, args, tensors)
    asked = kwargs.get("device")
    if asked is not None:
        kwargs["device"] = torch.device("cpu") if torch.device(asked).type == NAME else asked
    on_gpu = here if asked is None else torch.device(asked).type == NAME
    held = tree_map_only(OnGpu, lambda one: one.held, (tuple(args), kwargs))
    found = func(*held[0], **held[1])
    if func is torch.ops.aten._local_scalar_dense.default or not on_gpu:
        return found
    if func.namespace == "c10d":  # The buffers are the same, and have what was sent.
        return found
    wrapped = tree_map(lambda one: OnGpu(one) if type(one) is Tensor else one, found)
    return return_and_correct_aliasing(func, tuple(args), dict(kwargs), wrapped) if here else wrapped


def _require_one_device(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise as torch does where a GPU's operation gets a tensor of the processor."""
    if func in _MOVES or not any(isinstance(one, OnGpu) for one in tensors):
        return
    if func in _INDEXES and isinstance(args[0], OnGpu):
        tensors = [args[0], *args[2:3]] if func is not torch.ops.aten.index.Tensor else [args[0]]
        tensors = [one for one in tensors if isinstance(one, Tensor)]
    strangers = [one for one in tensors if not isinstance(one, OnGpu) and (one.dim() or func in _ADVANCED)]
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({func})"
        )


class _Module(_DummyBackendModule):
    """The module that stands where `torch.cuda` does: the GPU's random numbers are the processor's."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


class _Stream:
    """A stream whose work is done at once."""

    def record_event(self) -> _Stream:
        return self

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Let there be a device `pretended`, which this gives. It stays torch's accelerator: take a process of its own."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME, _Module())
    with ExitStack() as stack:
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        stack.enter_context(patch.object(torch.cuda, "current_stream", lambda device=None: _Stream()))
        stack.enter_context(_Factories())
        yield torch.device(NAME, 0)
