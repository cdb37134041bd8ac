"""First masks: drawn, by magnitude, or by scores of the dense network (SNIP, GraSP, SynFlow)."""

from dynsparse.first_masks.deciding import Scoring
from dynsparse.first_masks.gradients import Example, Loss
from dynsparse.first_masks.settings import FirstMasks, ScoredMasks, SynflowMasks

__all__ = ["Example", "FirstMasks", "Loss", "ScoredMasks", "Scoring", "SynflowMasks"]
