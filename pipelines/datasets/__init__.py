"""Data sets, one a file: settings, checks of files, and pipelines. `registry.py` lists them."""
