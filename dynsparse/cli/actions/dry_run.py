"""`--dry-run`: print the resolved config and the table of layers."""

from __future__ import annotations

import torch

from dynsparse.cli.actions.base import Action, Rule, network_rules
from dynsparse.runtime import Worker
from dynsparse.training.network import build_method, build_network
from dynsparse.training.preflight import require_split, require_usable_sources
from dynsparse.training.sources import NOTHING, missing_sources, read_sources


class DryRun(Action):
    """Build the network on the CPU, without data, and print what it is."""

    def rules(self, worker: Worker) -> list[Rule]:
        """Return the rules of a network whose batches can be split."""
        return [*network_rules(self.config, worker), lambda: require_split(self.config, worker.world_size)]

    def rehearse(self, worker: Worker) -> str:
        """Raise UserError for weights or masks to start from that do not fit."""
        if not missing_sources(self.config):
            require_usable_sources(self.config)
        return "the config and its layers fit"

    def run(self, worker: Worker) -> None:
        """Print config and layers on rank 0, as the method begins with them."""
        if not worker.is_main:
            return
        missing = missing_sources(self.config)
        sources = NOTHING if missing else read_sources(self.config)
        network = build_network(self.config, torch.device("cpu"), sources)
        build_method(self.config, [layer.spec for layer in network.masks]).prepare(network.masks)
        notes = [f"note: {line}; the table is of a start without it" for line in missing]
        print("\n".join([self.config.as_yaml(), network.table(), *notes]), flush=True)
