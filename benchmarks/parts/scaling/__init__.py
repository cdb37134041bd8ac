"""Parts of `benchmarks.scaling`: what a rank does, what is counted, what is computed for many GPUs."""
