"""All that is done to a run's folder. Each file has one kind; `registry.MUTATIONS` has all of them by name."""

from tests.fuzz.mutations import archives, damage, folders, locks, nodes, pickles, states, tensors, texts  # noqa: F401
from tests.fuzz.mutations.registry import MUTATIONS, Mutation

__all__ = ["MUTATIONS", "Mutation"]
