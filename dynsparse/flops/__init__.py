"""Floating-point operations of networks and of their training, as the papers on sparse training count them."""

from dynsparse.flops.costs import Costs, whole_steps
from dynsparse.flops.counting import Counted, count
from dynsparse.flops.words import in_words, multiples

__all__ = ["Costs", "Counted", "count", "in_words", "multiples", "whole_steps"]
