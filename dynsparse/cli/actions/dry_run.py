"""`--dry-run`: print the resolved config and the table of layers."""

from __future__ import annotations

import torch

from dynsparse.cli.actions.base import Action, Rule, network_rules, require_shrinks
from dynsparse.config.own_file import told
from dynsparse.errors import UserError
from dynsparse.first_masks import ScoredMasks
from dynsparse.flops import multiples, whole_steps
from dynsparse.methods import Method
from dynsparse.methods.clock import Schedule
from dynsparse.optimizers import described, parameter_groups
from dynsparse.runtime import Worker
from dynsparse.training.banner import exploration_lines
from dynsparse.training.network import Network, build_method, build_network, couple
from dynsparse.training.preflight import require_split, require_usable_sources
from dynsparse.training.sizes import training_shape
from dynsparse.training.sources import NOTHING, missing_sources, read_sources

NOMINAL_EPOCH = 1000
"""Steps taken for an epoch, as the data are not looked at: only how often weights move by gradient depends on it."""
MOST_STEPS = 100_000


class DryRun(Action):
    """Build the network on the CPU, without data, and print what it is."""

    def rules(self, worker: Worker) -> list[Rule]:
        """Return the rules of a network whose batches can be split."""
        rules = [lambda: require_split(self.config, worker.world_size), lambda: require_shrinks(self.config)]
        return [*network_rules(self.config, worker), *rules]

    def rehearse(self, worker: Worker) -> str:
        """Raise UserError for weights or masks to start from that do not fit."""
        if not missing_sources(self.config):
            require_usable_sources(self.config)
        return "the config and its layers fit"

    def run(self, worker: Worker) -> None:
        """Print config and layers on rank 0, as the method begins with them."""
        if not worker.is_main:
            return
        with told(self.config.method):
            lines = self._lines()
        print("\n".join(lines), flush=True)

    def _lines(self) -> list[str]:
        """Return all lines to print."""
        missing = missing_sources(self.config)
        sources = NOTHING if missing else read_sources(self.config)
        network = build_network(self.config, torch.device("cpu"), sources)
        method = build_method(self.config, [layer.spec for layer in network.masks])
        epochs = self.config.train.epochs
        steps = max(1, min(NOMINAL_EPOCH, MOST_STEPS // epochs))
        schedule = Schedule(epochs * steps, steps)
        explores = self._exploration(network, method, schedule)
        couple(method, self.config, network.model, [layer.spec for layer in network.masks])
        method.prepare(network.masks)
        notes = [f"note: {line}; the table is of a start without it" for line in missing]
        initial = self.config.sparsity.initial
        if isinstance(initial, ScoredMasks) and initial.scope == "global":
            notes.append(f"note: sparsity.initial: {initial.name} shares the weights out when training begins, not yet")
        train = self.config.train
        optimizer = train.optimizer.build(parameter_groups(network.model, train.parameters), lr=1.0)
        lines = [*self._flops(network, method, schedule), *method.notes, *explores, *described(optimizer), *notes]
        return [self.config.as_yaml(), network.table(), *lines]

    def _exploration(self, network: Network, method: Method, schedule: Schedule) -> list[str]:
        """Return the line on how much the method explores, or why it cannot; none where masks do not move."""
        layers = [layer.spec for layer in network.masks]
        active = {layer.name: layer.active_units for layer in network.masks}
        at = f"at {schedule.total_steps // self.config.train.epochs:,} steps an epoch, as the data are not looked at"
        try:
            method.plan(layers, active, schedule)
        except UserError as error:
            return [f"note: {at}: {error}"]
        return [f"{line}, {at}" for line in exploration_lines(method, self.config.method.name)]

    def _flops(self, network: Network, method: Method, schedule: Schedule) -> list[str]:
        """Return the line on the FLOPs of inference and training, if they can be counted."""
        if network.costs is None:
            return []
        epochs = self.config.train.epochs
        share = whole_steps(method, schedule)
        dense, training = 0.0, 0.0
        phases = self.config.train.phases
        for phase, end in zip(phases, [*(later.first for later in phases[1:]), epochs], strict=True):
            if (costs := network.costs_at(training_shape(self.config, phase.first))) is None:
                return []
            usual, whole = (network.step_flops(costs, whole=each) for each in (False, True))
            dense += (end - phase.first) * 3 * costs.dense
            training += (end - phase.first) * (usual + (whole - usual) * share)
        return [multiples(network.costs, network.inference_flops or 0, training / dense)]
