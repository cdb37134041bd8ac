"""Figures behind a choice: what was timed, what was chosen, and what it brought."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynsparse.inference.rounds import Ratio
from dynsparse.tables import align

DENSE = "dense"


@dataclass(frozen=True)
class LayerRow:
    """One layer, timed alone on inputs of the shape that it gets in the network."""

    name: str
    kind: str
    """The class of the module."""
    shape: tuple[int, ...]
    """Shape of the weight in the model that was given."""
    density: float
    """Weights other than 0 over all weights."""
    ms: dict[str, float]
    """Median milliseconds of a call by way: `dense`, `compact` where channels have gone, `CSR`."""
    ratio: dict[str, float]
    """Median of the ratios to `dense` within a round, by way."""
    chosen: str
    """The way in the network that was taken."""


@dataclass(frozen=True)
class NetworkRow:
    """One network as a whole."""

    name: str
    ms: float
    """Median milliseconds of a call; NaN where it was not timed."""
    ratio: Ratio | None
    """Ratios to the dense network within a round."""
    note: str = ""
    """Reason why it was not timed, or not taken though it looked faster."""


@dataclass(frozen=True)
class Table:
    """All that was timed for one input shape."""

    input_shape: tuple[int, ...]
    through: str
    threads: int
    """Threads of torch, which ONNX Runtime and OpenVINO get as well."""
    chosen: str
    """The network that was taken."""
    ratio: Ratio
    """Its time over the dense network's, from rounds of their own after the choice; 1 for the dense network."""
    difference: float
    """Largest difference of an output from the dense network's, as a fraction of the largest output."""
    networks: Sequence[NetworkRow]
    layers: Sequence[LayerRow]
    other_layers: int
    """Layers that nothing but dense was tried for."""

    def __str__(self) -> str:
        shape, threads = "x".join(map(str, self.input_shape)), f"{self.threads} thread{'s' * (self.threads != 1)}"
        head = f"input {shape}, through {self.through}, {threads}: {self._taken()}"
        return "\n\n".join([head, align(list(self._networks())), *self._layers()])

    def _taken(self) -> str:
        if self.chosen == DENSE:
            return "nothing is clearly faster than dense, which is taken"
        return (
            f"{self.chosen} is taken, {_spread(self.ratio)} of the dense time; outputs differ by {self.difference:.0e}"
        )

    def _networks(self) -> Iterator[tuple[str, ...]]:
        yield "network", "ms", "of dense", ""
        for row in self.networks:
            times = ("-", "-") if row.ratio is None else (_ms(row.ms), _spread(row.ratio))
            yield row.name, *times, row.note or ("taken" if row.name == self.chosen else "")

    def _layers(self) -> Iterator[str]:
        if self.layers:
            yield align([("layer", "kind", "weight", "density", "dense ms", "compact", "CSR", "chosen"), *self._rows()])
        if self.layers or self.other_layers:
            yield f"{self.other_layers} other layers have no way but dense"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for row in self.layers:
            ratios = (f"{row.ratio[way]:.2f}" if way in row.ratio else "-" for way in ("compact", "CSR"))
            shape = "x".join(map(str, row.shape))
            yield row.name, row.kind, shape, f"{row.density:.3f}", _ms(row.ms[DENSE]), *ratios, row.chosen


def _ms(value: float) -> str:
    return f"{value:.3f}"


def _spread(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
