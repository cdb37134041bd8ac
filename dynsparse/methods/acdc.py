"""AC/DC: dense and sparse phases in turn."""

from __future__ import annotations

from typing import Literal

from dynsparse.methods.gmp import Gmp, GmpSettings
from dynsparse.schedules import AlternatingDensity, AnyDensity


class AcdcSettings(GmpSettings):
    """AC/DC (Peste et al. 2021): compressed and decompressed training in turn; a dense and a sparse network result."""

    name: Literal["acdc"]  # type: ignore[assignment]
    scope: Literal["layer", "global"] = "global"
    """layer: each layer comes to its own sparsity. global: one threshold for all layers."""
    density: AnyDensity = AlternatingDensity(name="alternating")
    """The phases. Default: as on ImageNet, 10 dense epochs, then 5 sparse and 5 dense in turn, sparse from 85 on."""

    def build(self) -> Acdc:
        return Acdc(self)


class Acdc(Gmp):
    """Peste, Iofinova, Vladu & Alistarh, "AC/DC: alternating compressed/decompressed training", NeurIPS 2021.

    Algorithm 1: after a dense warm-up, sparse phases keep the largest |weights| and train these alone; dense phases
    train all, the others from 0. The last phase is sparse.

    Departures: none of the optimizer's state is reset at the beginning of a dense phase but that of weights which were
    inactive, and it is 0 there. `best` is chosen among the epochs of the last sparse phase.
    """
