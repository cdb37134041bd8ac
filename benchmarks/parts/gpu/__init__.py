"""Parts of `benchmarks.gpu`: each checks or measures something on one device. All run on the CPU too."""
