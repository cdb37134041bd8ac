"""`--check`: tell what another action would refuse."""

from __future__ import annotations

from dataclasses import dataclass

from dynsparse.cli.actions.base import Action, Rule
from dynsparse.runtime import Worker


@dataclass(frozen=True)
class Rehearsal(Action):
    """Go through another action as far as it can be done without a change."""

    of: Action

    def rules(self, worker: Worker) -> list[Rule]:
        """Return the rules of the other action."""
        return self.of.rules(worker)

    def rehearse(self, worker: Worker) -> str:
        """Rehearse the other action."""
        return self.of.rehearse(worker)

    def run(self, worker: Worker) -> None:
        """Print what the other action would do, on rank 0."""
        if worker.is_main:
            print(f"check passed: {self.rehearse(worker)}", flush=True)
