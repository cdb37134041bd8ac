"""Flags that contradict each other, and flags without effect."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from dynsparse.cli.paper.draft import INITIAL, MODES, Draft
from dynsparse.cli.paper.kinds import MLP, WRN
from dynsparse.config.overrides import look


def contradictions(draft: Draft) -> Iterator[str]:
    """Yield an error for each pair of flags that contradict each other."""
    given = draft.given
    modes = [mode for mode in MODES if mode in given]
    for one, other in itertools.combinations(modes, 2):
        yield f"{one} and {other} contradict each other: each is a method of its own; give one of them"
    for name in INITIAL:
        if "--prune" in given and given.get(name):
            yield (
                f"{name} {given[name]} and --prune contradict each other: pruning starts from a dense network; "
                f"give {name.replace('initial', 'prune-target')} for the sparsity in the end"
            )


def contradicted_overrides(draft: Draft) -> Iterator[str]:
    """Yield an error for each override that says other than a flag. Overrides win over defaults and files only."""
    merged = draft.merged
    for path, option in draft.options.items():
        key = ".".join(path)
        if look(merged, key) != draft.look(key):
            yield f"{option} ({key}) and {', '.join(draft.overridden(key))} contradict each other; give one of them"


def without_effect(draft: Draft) -> Iterator[str]:
    """Yield a warning for each flag that has no effect beside the others."""
    given, method = draft.given, draft.named("method")
    if "--threshold-prune" in given and "--rewire" not in given:
        yield "--threshold-prune has no effect without --rewire"
    if "--conv-group-lasso" in given and not look(draft.merged, "train.penalty.l1"):
        yield "--conv-group-lasso has no effect while --L1-loss-coeff is 0"
    if "--post-prune-epochs" in given and method != "pruning":
        yield f"--post-prune-epochs has no effect with method {method}; it is for pruning (--prune)"
    elif "--post-prune-epochs" in given and draft.overridden("train.epochs"):
        yield f"--post-prune-epochs has no effect with {', '.join(draft.overridden('train.epochs'))}"
    for name in INITIAL:
        if given.get(name) and method == "dense":
            yield f"{name} has no effect with method dense"
    for model, kind, layers in ((MLP, "conv", "convolutions"), (WRN, "fc", "sparse linear layers")):
        for name in (f"--initial-sparsity-{kind}", f"--prune-target-sparsity-{kind}"):
            if given.get(name) and draft.named("model") == model and not draft.look("sparsity.include"):
                yield f"{name} has no effect with model {model}, which has no {layers}"
