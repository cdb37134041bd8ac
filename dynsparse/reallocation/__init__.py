"""One reallocation: plan -> broadcast -> apply -> verify -> report.

Rank 0 scores the active units and turns the scores into a plan of a few numbers a layer. Every rank carries the plan
out on its own copy of the same weights. Plans are exact, so that masks agree without ever being sent.
"""

from dynsparse.reallocation.plan import LayerPlan, Plan
from dynsparse.reallocation.reallocator import OnDesync, Owed, Reallocator
from dynsparse.reallocation.report import ReallocationReport
from dynsparse.reallocation.seen import Seen

__all__ = ["LayerPlan", "OnDesync", "Owed", "Plan", "ReallocationReport", "Reallocator", "Seen"]
