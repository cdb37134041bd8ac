"""speed_up: the fastest network on this machine that computes what a given one does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dynsparse.determinism import exact_float32
from dynsparse.errors import UserError
from dynsparse.inference.asked import checked_copy, outputs
from dynsparse.inference.engines import TORCH
from dynsparse.inference.layers import COMPACT, CSR
from dynsparse.inference.networks import Network, networks
from dynsparse.inference.rounds import Act, Ratio, in_turn, ratio
from dynsparse.inference.table import DENSE, LayerRow, NetworkRow, Table

MARGIN = 0.05
"""Fraction by which a network has to be faster than the dense one to take its place."""
TOLERANCE = 1e-4
"""Largest difference of an output that sums in another order may make, as a fraction of the largest output."""
ROUNDS = 9
_SAME = Ratio(1.0, 1.0, 1.0)


class SpedUp(nn.Module):
    """A network for inference that was chosen by time. Same input, same output to rounding."""

    def __init__(self, network: nn.Module, table: Table) -> None:
        super().__init__()
        self.network = network
        self.table = table
        """Figures: what was timed, what was chosen and what it brought. `print(it)` shows them."""
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs, without a graph for gradients."""
        return self.network(images)  # type: ignore[no-any-return]


def speed_up(model: nn.Module, example: Tensor, *, through: str = TORCH, rounds: int = ROUNDS) -> SpedUp:
    """Return the fastest network on this machine that computes what `model` does. `model` stays as it was.

    Candidates are the network without the channels that do nothing (`dynsparse.shrinking.compact`), with CSR matrices
    in the layers that are faster so, each also in the memory order channels_last, and the dense network itself. They
    run in turns in `rounds` rounds. One is taken only if it is clearly faster than dense, twice: MARGIN by the median,
    and in three rounds of four.

    Arguments:
        model: in evaluation mode, float32, on the CPU or a GPU. Wrappers such as DDP are taken off the copy.
        example: one batch of its input, float32 [batch, ...]. The choice holds for this shape on this machine. Other
            batch sizes work too.
        through: `torch`, or a program that runs dense and compact networks: `inductor` (torch.compile, needs a C++
            compiler), `onnxruntime`, `openvino` (extras of the same names).
        rounds: at least 3.

    Raises UserError, in one line, for what cannot be sped up, and for a package that is missing.
    """
    dense = checked_copy(model, example, through, rounds)
    example = example.detach()
    probes = _probes(dense, example)
    found = [_compared(one, probes) for one in networks(dense, example, through, rounds)]
    candidates = {one.name: one for one in found if one.module is not None}
    modules = {DENSE: dense, **{name: one.module for name, one in candidates.items() if one.module is not None}}
    rows, chosen, won = _race(modules, example, rounds)
    rows += [NetworkRow(one.name, math.nan, None, one.note) for one in found if one.module is None]
    module = modules[chosen]
    layers, others = _layers(found, candidates.get(chosen), chosen)
    difference = max(_difference(module, *probe) for probe in probes)
    shape, threads = tuple(example.shape), torch.get_num_threads()
    return SpedUp(module, Table(shape, through, threads, chosen, won, difference, rows, layers, others))


def _probes(dense: nn.Module, example: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return inputs with the dense network's outputs: the example, and random images where they have finite outputs."""
    generator = torch.Generator(example.device).manual_seed(0)
    drawn = torch.randn(example.shape, generator=generator, device=example.device)
    with exact_float32():
        probes = [(example, outputs(dense, example))]
        try:
            return [*probes, (drawn, outputs(dense, drawn))]
        except UserError:  # A network may take other images than random ones alone.
            return probes


def _compared(candidate: Network, probes: Sequence[tuple[Tensor, Tensor]]) -> Network:
    """Return the candidate, without its module if that does not give the dense network's outputs."""
    if candidate.module is None:
        return candidate
    try:
        difference = max(_difference(candidate.module, *probe) for probe in probes)
    except Exception as error:  # noqa: BLE001 - As many kinds as there are networks; it is told, and not taken.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return replace(candidate, module=None, note=f"refused: does not run ({reason})")
    if difference <= TOLERANCE:
        return candidate
    return replace(candidate, module=None, note=f"refused: outputs differ by {difference:.0e}")


def _difference(module: nn.Module, images: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest output; inf for NaN and for another shape."""
    with torch.no_grad(), exact_float32():
        found = module(images)
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return math.inf
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    return difference / largest if largest else (math.inf if difference else 0.0)


def _race(modules: Mapping[str, nn.Module], example: Tensor, rounds: int) -> tuple[list[NetworkRow], str, Ratio]:
    """Time all networks, then those that win once more against dense alone. Returns rows, the winner and its ratio."""
    with torch.no_grad():
        times = in_turn({name: _act(module, example) for name, module in modules.items()}, rounds)
        ratios = {name: ratio(seconds, times[DENSE]) for name, seconds in times.items()}
        rows = [NetworkRow(name, 1000 * statistics.median(times[name]), ratios[name]) for name in modules]
        for name in sorted(
            (name for name in modules if ratios[name].wins(MARGIN)), key=lambda name: ratios[name].median
        ):
            again = in_turn({one: _act(modules[one], example) for one in (DENSE, name)}, rounds)
            confirmed = ratio(again[name], again[DENSE])
            if confirmed.wins(MARGIN):
                return rows, name, confirmed
            note = f"not taken: {confirmed.median:.2f} of dense when timed again"
            rows = [replace(row, note=note) if row.name == name else row for row in rows]
    return rows, DENSE, _SAME


def _act(module: nn.Module, example: Tensor) -> Act:
    return lambda: module(example)


def _layers(found: Sequence[Network], taken: Network | None, chosen: str) -> tuple[list[LayerRow], int]:
    """Return the layers of the network that was taken, or of the first that was looked at, with what runs in it."""
    looked_at = [one.layers for one in found if one.layers is not None]
    layers = taken.layers if taken is not None and taken.layers is not None else next(iter(looked_at), None)
    if layers is None:
        return [], 0
    return [replace(row, chosen=_runs_as(row, chosen)) for row in layers.rows], layers.others


def _runs_as(row: LayerRow, chosen: str) -> str:
    parts = chosen.split(", ")
    if CSR in parts and row.chosen == CSR:
        return CSR
    return COMPACT if COMPACT in parts and COMPACT in row.ms else DENSE
