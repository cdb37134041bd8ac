"""All that is done to inputs. Each file has one kind; `registry.MUTATIONS` has all of them by name."""

from tests.fuzz.inputs.mutations import (  # noqa: F401
    archives,
    configs,
    fields,
    files,
    images,
    indexes,
    lists,
    parquet,
    shards,
    targets,
    trees,
)
from tests.fuzz.inputs.mutations.registry import MUTATIONS, Mutation

__all__ = ["MUTATIONS", "Mutation"]
