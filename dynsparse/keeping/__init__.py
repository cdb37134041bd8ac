"""What keeps a model sparse in somebody's loop: the parts of `SparseTraining`, one concern each."""
