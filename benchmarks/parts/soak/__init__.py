"""Parts of `benchmarks.soak`: the run, and the faults that strike it."""
