"""Layout in memory of gradients and of an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn, optim

from dynsparse.optimizers.lamb import Lamb

WHOLE = frozenset({"col_var", "row_var"})
"""Names of state of Adafactor that has a number for each row or column, not for each weight."""

STATE_KEYS = {
    "sgd": frozenset({"momentum_buffer"}),
    "adamw": frozenset({"step", "exp_avg", "exp_avg_sq"}),
    "lamb": frozenset({"step", "exp_avg", "exp_avg_sq"}),
}
"""Names of the state that each keeps of a parameter after its first step. torch's others depend on their options."""


def scalars_are_on_device(optimizer: optim.Optimizer) -> bool:
    """Return whether the optimizer keeps single numbers, such as its count of steps, beside the weights.

    Others keep them on the CPU, and would wait for a GPU at each of them.
    """
    group = optimizer.param_groups[0]
    return bool(group.get("fused") or group.get("capturable")) or isinstance(optimizer, (Lamb, optim.ASGD))


def makes_state_at_once(optimizer: optim.Optimizer) -> bool:
    """Return whether the optimizer makes its state where it is built, also of parameters that are frozen."""
    return isinstance(optimizer, optim.Adagrad)


def skips_on_device(optimizer: optim.Optimizer) -> bool:
    """Return whether the optimizer skips a step where its `found_inf`, on the device, is 1: torch's fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def has_begun(optimizer: optim.Optimizer) -> bool:
    """Return whether all parameters with a gradient have their state, as after the first step.

    torch's fused SGD takes memory for its momentum in the first step, and would leave it unset if that is skipped.
    """
    groups = [group for group in optimizer.param_groups if group.get("momentum", 1)]  # Without it SGD keeps nothing.
    trained = [one for group in groups for one in group["params"] if one.grad is not None]
    return all(optimizer.state.get(parameter) for parameter in trained)


def check_layouts(parameters: Iterable[nn.Parameter]) -> None:
    """Assert that gradients have the memory layout of their parameters, as autograd promises.

    On a CPU the fused optimizers (torch 2.13) rely on it: otherwise they would add gradients to other weights.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            layouts = [_layout(parameter), _layout(parameter.grad)]
            assert layouts[0] == layouts[1], f"a gradient lies otherwise than its parameter: {layouts}"


def _layout(tensor: Tensor) -> list[int]:
    """Return the strides of the dimensions larger than 1."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
