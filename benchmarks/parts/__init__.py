"""Pieces of the larger scripts, each script's in a module or package of its name."""
