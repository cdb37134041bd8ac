"""Reading a command line: its options become one action with its config."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from os.path import exists
from pathlib import Path
from typing import Any

from dynsparse import torchrun
from dynsparse.cli.actions.base import Action
from dynsparse.cli.actions.dry_run import DryRun
from dynsparse.cli.actions.evaluation import Evaluation
from dynsparse.cli.actions.one_of_many import OneOfMany
from dynsparse.cli.actions.preview import Preview
from dynsparse.cli.actions.rehearsal import Rehearsal
from dynsparse.cli.actions.training import Training
from dynsparse.cli.paper.flags import any_given
from dynsparse.cli.paper.translate import translate
from dynsparse.cli.resuming import Resume, read_resume
from dynsparse.config import loading, own_method
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.files import open_regular
from dynsparse.training.checkpoint import checkpoint_of, read_run, result_of
from dynsparse.training.older import as_of_now
from dynsparse.training.resume import begun_by
from dynsparse.training.run import names

log = logging.getLogger(__name__)


def action_of(asked: argparse.Namespace) -> Action:
    """Return what the options ask for. Raises UserError, with all that is wrong with the config."""
    resume = read_resume(asked)
    config = _with_facts_of_data(load_config(asked, resume), without_data=asked.dry_run)
    action = _action(asked, config, resume.go_on)
    return Rehearsal(config, action) if asked.check else action


def _action(asked: argparse.Namespace, config: RunConfig, resume: str | None) -> Action:
    if asked.evaluate is not None:  # An empty text, of a variable that is not set, must not train.
        return Evaluation(config, asked.evaluate, asked.confusion)
    if asked.dry_run:
        return DryRun(config)
    if asked.preview:
        return Preview(config, asked.preview, resume)
    if asked.rehearse:
        return OneOfMany(config, *asked.rehearse)
    return Training(config, resume, asked.overwrite)


def load_config(asked: argparse.Namespace, resume: Resume) -> RunConfig:
    """Load the config from --config, else from the checkpoint to resume or evaluate, else from the paper's flags."""
    for option in ("--overwrite", "--evaluate", "--rehearse"):
        if resume.go_on is not None and getattr(asked, option[2:]):
            raise UserError(f"argument {option}: not allowed with argument --resume; see {asked.program} --help")
    if asked.confusion is not None and asked.evaluate is None:
        raise UserError(f"argument --confusion: only with argument --evaluate; see {asked.program} --help")
    if any_given(asked) or (resume.weights is not None and asked.config is not None):
        return _translated(asked, resume)
    if asked.config is not None:
        return loading.load(asked.config, asked.overrides)
    source, sections = _sections(asked, resume)
    if sections is None:
        raise _no_config(asked.overrides)
    return loading.parse(sections, asked.overrides, source, run_code=_runs_code(asked))


def _runs_code(asked: argparse.Namespace) -> bool:
    """Whether the file of a method of one's own is run: not to evaluate a checkpoint, which may be a stranger's."""
    return asked.evaluate is None or asked.config is not None


def _translated(asked: argparse.Namespace, resume: Resume) -> RunConfig:
    """Return the config that the paper's flags make, or change, and warn of flags without effect."""
    source, sections = _sections(asked, resume)
    translation = translate(asked, resume, sections, source, run_code=_runs_code(asked))
    for line in translation.warnings:
        log.warning("%s", line)
    return translation.config


def _no_config(overrides: Sequence[str]) -> UserError:
    for text in overrides:
        if text.endswith((".yaml", ".yml")):
            return UserError(f"{text} is no section.key=value; a config is given by --config {text}")
    return UserError(
        "--config is missing; give a YAML file such as configs/digits_dsr.yaml, or --model and other flags"
    )


def _sections(asked: argparse.Namespace, resume: Resume) -> tuple[str, Mapping[str, Any] | None]:
    """Return the sections of a config, not validated, and the name of their source; None where there are none."""
    if asked.config is not None:
        return asked.config, loading.read_mapping(asked.config)
    if asked.evaluate is not None:
        return asked.evaluate, config_of(result_of(asked.evaluate))
    if resume.go_on not in (None, "auto"):
        return resume.go_on, config_of(checkpoint_of(resume.go_on))
    return "command line", None


def config_of(path: Path) -> Mapping[str, Any]:
    """Return the config that a checkpoint's run was made with.

    The checkpoint may be gone: an earlier attempt of this launch that resumed from it may have saved so often since
    that it is not kept any more (`checkpoint.keep`). Then it is the config which that attempt has left in the run's
    folder.
    """
    folder = path.absolute().parent.parent
    left = folder / names.CONFIG
    if not exists(path) and begun_by(torchrun.launch_id(), folder):
        try:
            open_regular(left).close()
        except OSError as error:
            raise UserError(f"{left}: {error.strerror}; bring it back, or set name=") from None
        return loading.read_mapping(left)
    config = as_of_now(read_run(path)["config"])
    return _with_kept_file(config, folder)


def _with_kept_file(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return a run's config with the copy that its folder keeps of the file of a method of one's own."""
    method = config["method"]
    if not own_method.is_own(method):
        return config
    return {**config, "method": own_method.beside(method, folder, names.METHOD)}


def _with_facts_of_data(config: RunConfig, *, without_data: bool) -> RunConfig:
    """Add what the data alone know, such as their number of classes. Raises UserError if it cannot be had."""
    try:
        data = config.data.resolved()
    except UserError as error:
        hint = "; without the data, set data.number_of_classes" if without_data else ""
        raise UserError(f"{error}{hint}") from None
    return config if data is config.data else config.model_copy(update={"data": data})
