"""Scripts that measure what the project claims: `python -m benchmarks.NAME`, or all of the CPU's with `make bench`.

A module here is a script and says what it measures. `harness` is what all scripts share: options, rounds, records,
pages. `parts` holds the pieces of the larger scripts. `pages` holds the text of each page, `results` the kept figures.

A new script has a function `measure`, which returns figures, and a text in `pages/` with places for them. Its `main` is
`script.run(NAME, script.page_parser(__doc__), measure, page)`. passes.py is the shortest example.
"""
