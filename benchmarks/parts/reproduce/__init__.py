"""Parts of `benchmarks.reproduce`: recipes, training, plots."""
