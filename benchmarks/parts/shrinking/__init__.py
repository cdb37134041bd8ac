"""Parts of `benchmarks.shrinking`: runs side by side, on several workers, and the same function in each family."""
