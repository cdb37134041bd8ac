"""Parts of `benchmarks.reallocation`: the network that is reallocated, and rival ways to do it."""
