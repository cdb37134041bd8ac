"""Rules of several flags together: which network, method, data and optimizer they choose."""

from __future__ import annotations

from pydantic import ValidationError

from dynsparse.cli.paper.draft import ASKED_BY, INITIAL, MODES, Draft
from dynsparse.cli.paper.flags import FLAGS, POST_PRUNE_EPOCHS
from dynsparse.cli.paper.kinds import DATA, MLP
from dynsparse.cli.resuming import Resume
from dynsparse.config.overrides import look
from dynsparse.methods.pruning import PruningSettings


def choose_networks(draft: Draft) -> None:
    """Choose the model; without a config its data set too. Another model than the config's gets a new section."""
    model = draft.given.get("--model", MLP)
    if "model" in draft.fresh:
        draft.raw |= {"model": {"name": model}, "data": {"name": DATA[model]}}
    elif "--model" in draft.given and draft.named("model") != model:
        draft.raw["model"] = {"name": model}
        draft.fresh.add("model")


def choose_method(draft: Draft) -> None:
    """Choose the method by its flag; else, without a config, static, or dense where nothing is sparse."""
    given = draft.given
    modes = [mode for mode in MODES if mode in given]
    if modes:
        mode = modes[0]
        method = "dsr" if mode == "--rewire" and "--threshold-prune" in given else MODES[mode]
        draft.fresh.add("method")
        draft.raw["method"] = {}
        draft.put("method.name", method, ASKED_BY[method])
    elif "method" in draft.fresh:
        sparsities = [given.get(flag.name, flag.default) for flag in FLAGS if flag.name in INITIAL]
        is_dense = not any(sparsities) and "--copy-mask-from" not in given
        draft.put("method.name", "dense" if is_dense else "static")


def finish_data_and_optimizer(draft: Draft) -> None:
    """Set keys that follow from the choice of data set, or from --momentum."""
    if "data" in draft.fresh and "--data" not in draft.given and draft.named("data") in ("cifar10", "mnist"):
        draft.put("data.download", True)
    if "data" in draft.fresh and draft.named("data") == "imagenet":
        draft.put("data.number_of_classes", 1000)  # The paper's, with or without the data at hand.
    if (
        draft.given.get("--momentum") == 0
        and "--nesterov" not in draft.given
        and draft.named("train.optimizer") == "sgd"
    ):
        draft.put("train.optimizer.nesterov", False)


def take_weights(draft: Draft, resume: Resume) -> None:
    """Start from the weights of the run that --resume names."""
    if resume.weights is not None:
        draft.put("start.weights_from", resume.weights, "--resume")
    elif "--prune" in draft.given and look(draft.merged, "start.weights_from") is None:
        draft.options[("method", "name")] = "--prune without --resume RUN"


def plan_pruning(draft: Draft) -> None:
    """Set the number of epochs that pruning takes."""
    if draft.named("method") != "pruning":
        return
    section = draft.merged.get("method")
    try:
        settings = PruningSettings.model_validate(section)
    except ValidationError:
        return  # The whole config is validated later, and this error listed.
    if draft.overridden("train.epochs") or not {"--prune", "--post-prune-epochs"} & draft.given.keys():
        return
    after = draft.given.get("--post-prune-epochs", POST_PRUNE_EPOCHS)
    epochs = settings.last_prune + 1 + after
    asked = draft.given.get("--epochs", epochs)
    if asked != epochs:
        draft.wrong.append(
            f"--epochs {asked} and --prune contradict each other: the last prune ends epoch {settings.last_prune} "
            f"(counted from 0), and {after} more make {epochs} epochs; leave --epochs out or set --post-prune-epochs"
        )
    draft.put("train.epochs", epochs)
