"""Code that all scripts share: options, rounds, records, pages, runs to measure, and times of calls and processes."""
