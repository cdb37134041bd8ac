"""Verbs that look at runs and checkpoints after training. Nothing here trains."""
