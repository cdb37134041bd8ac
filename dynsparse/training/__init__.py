"""Training: the loop, evaluation, checkpoints, observers."""
