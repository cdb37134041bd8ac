"""The verb `train`: config -> data, network, method -> Trainer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dynsparse import torchrun
from dynsparse.cli.actions.base import require
from dynsparse.cli.actions.training import Training
from dynsparse.cli.asking import action_of
from dynsparse.cli.leaving import ended_by, noted
from dynsparse.cli.options import parse
from dynsparse.errors import EXIT_DONE
from dynsparse.runtime import Worker
from pipelines.common import streams


def main(words: Sequence[str], program: str = "dynsparse train") -> int:
    """Do what the command line asks for, and return the exit code, which is noted for the launcher as well."""
    worker = Worker()
    torchrun.forget_exit_code()
    try:
        worker = Worker.from_environment()
        _run(words, program, worker)
        code = EXIT_DONE
    except BaseException as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for this one
        code = ended_by(error, worker)
    return noted(code, worker)


def _run(words: Sequence[str], program: str, worker: Worker) -> None:
    asked = parse(words, program)
    streams.log_in_lines(logging.INFO if worker.is_main and not asked.check else logging.ERROR)
    action = action_of(asked)
    if isinstance(action, Training):
        streams.go_on_without()
    require(action.rules(worker))
    action.run(worker)
