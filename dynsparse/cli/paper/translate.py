"""The command line of the paper's code, translated to the config that a YAML file gives.

docs/from-the-paper-code.md says what each flag sets, and what differs from the paper's code.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynsparse.cli.paper import choosing
from dynsparse.cli.paper.contradictions import contradicted_overrides, contradictions, without_effect
from dynsparse.cli.paper.draft import Draft
from dynsparse.cli.paper.flags import FLAGS
from dynsparse.cli.paper.schedule_files import read_schedules
from dynsparse.cli.resuming import Resume
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError


@dataclass(frozen=True)
class Translation:
    """The config that a command line makes."""

    config: RunConfig
    warnings: Sequence[str]
    """Flags that have no effect, a line each."""


def translate(
    arguments: argparse.Namespace,
    resume: Resume,
    base: Mapping[str, Any] | None,
    source: str,
    *,
    run_code: bool = True,
) -> Translation:
    """Translate a command line. Raises UserError, a line for each mistake.

    `base` is the config that `source` holds, in which the flags change keys. None: the flags and their defaults are the
    whole config. `arguments` come from a parser with `add_flags`, `--resume` and `overrides`.
    `run_code`: see `loading.parse`.
    """
    draft = Draft.read(arguments, base)
    choosing.choose_networks(draft)
    choosing.choose_method(draft)
    read_schedules(draft)
    for flag in FLAGS:
        draft.apply(flag)
    choosing.finish_data_and_optimizer(draft)
    choosing.take_weights(draft, resume)
    choosing.plan_pruning(draft)
    draft.wrong += [*contradictions(draft), *contradicted_overrides(draft)]
    draft.idle += without_effect(draft)
    return Translation(_parsed(draft, source, run_code=run_code), draft.idle)


def _parsed(draft: Draft, source: str, *, run_code: bool) -> RunConfig:
    try:
        config = loading.parse(draft.raw, draft.overrides, source, draft.options, run_code=run_code)
    except UserError as error:
        raise UserError(*draft.wrong, *error.lines) from None
    if draft.wrong:
        raise UserError(*draft.wrong)
    return config
