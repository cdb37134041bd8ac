"""Parts of `benchmarks.pipelines`: each measures something and returns numbers. None is asserted."""
