"""The saved state of a `SparseTraining`: plain data and CPU tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynsparse.distributed import digest
from dynsparse.errors import UserError
from dynsparse.keeping.structures import require_structures, structured_units
from dynsparse.masks import MaskSet
from dynsparse.masks.granularity import Kind
from dynsparse.methods import Method

_KEYS = {"steps", "method", "sparsity", "masks", "weights"}
_OWED = "owed"  # Only where there is one.


def state_of(
    steps: int,
    owed: int | None,
    method: Method,
    method_name: str,
    sparsity: Mapping[Kind, float] | None,
    masks: MaskSet,
) -> dict[str, Any]:
    """Collect the state. Weights are not in it, only their digest: they belong to the model's own state.

    `owed`: step of an event that the next step makes up for.
    """
    return {
        "steps": steps,
        "method": {"name": method_name, "state": method.state_dict()},
        "sparsity": dict(sparsity) if sparsity is not None else None,
        "masks": masks.state_dict(),
        "weights": digest.active_digest(masks),
        **({} if owed is None else {_OWED: owed}),
    }


def require_mapping(state: object) -> None:
    """Raise UserError for a state that is none, such as the path of one."""
    if not isinstance(state, Mapping):
        raise UserError(
            f"state is a {type(state).__name__}, and not what state_dict() has returned: of a file, what torch.load "
            f"returns"
        )


def restore(
    state: Mapping[str, Any],
    method: Method,
    method_name: str,
    sparsity: Mapping[Kind, float] | None,
    masks: MaskSet,
    *,
    strict: bool = True,
) -> tuple[int, int | None]:
    """Load masks and the method's state, in place, and return the steps, and the step of an event that is owed.

    UserError if the state is of another method, sparsity or network, or damaged; with `strict` also if the model's
    weights are not those that it was saved with.
    """
    if missing := _KEYS - set(state):
        raise UserError(f"the state is not a SparseTraining's: it lacks {', '.join(sorted(missing))}")
    if not isinstance(state["method"], Mapping) or not {"name", "state"} <= state["method"].keys():
        raise UserError("the state is damaged: its method has no name, or no state")
    theirs = state["method"]["name"]
    if theirs != method_name:
        raise UserError(f"the state is of method {theirs}, this is {method_name}; continue with method {theirs}")
    if sparsity is not None and state["sparsity"] is not None and dict(state["sparsity"]) != dict(sparsity):
        raise UserError(
            f"the state was made with sparsity {state['sparsity']}, this has {dict(sparsity)}; take the same"
        )
    try:
        masks.load_state_dict(state["masks"])
        require_structures(
            method,
            [layer.spec for layer in masks],
            structured_units(masks),
            "the state",
            "take the state of a run with that structure",
            exact=False,  # A density may be on its way.
        )
        method.check_state(state["method"]["state"], {one.name: (one.spec.shape, one.active_weights) for one in masks})
        method.load_state_dict(state["method"]["state"])
        steps = int(state["steps"])
    except UserError:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the state is damaged, or of another version of this method ({type(error).__name__}: {error})"
        ) from error
    if strict and (digest.active_digest(masks) != state["weights"] or masks.strays()):
        raise UserError(
            "the model's weights are not those that this state was saved with: load the model's state_dict() of "
            "the same time first; if they are to be others, load_state_dict(state, strict=False)"
        )
    return steps, state.get(_OWED)
