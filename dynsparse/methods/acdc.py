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
    """The phases. Default: as on ImageNet, 10 dense epochs, then 5 sparse and 5 dense in turn. The last dense phase is
    75 to 84, and from 85 on the network is sparse."""

    def build(self) -> Acdc:
        return Acdc(self)


class Acdc(Gmp):
    """Peste, Iofinova, Vladu & Alistarh, "AC/DC: alternating compressed/decompressed training", NeurIPS 2021.

    Algorithm 1: after a dense warm-up, sparse phases keep the largest |weights| and train these alone; dense phases
    train all, the others from 0. The last phase is sparse. Phases are those of the authors' configs for ImageNet.

    Departures: at the beginning of a dense phase weights that were inactive begin without optimizer state, and the
    others keep theirs. The authors' scripts set the momentum of all weights to 0 then. `best` is chosen among the
    epochs of the last sparse phase. BatchNorm's statistics go on; the authors can compute them anew after a prune.
    """
