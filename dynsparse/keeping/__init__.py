"""The parts of `SparseTraining`, which keeps a model sparse in any training loop: one concern each."""
