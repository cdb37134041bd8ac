"""Commands on data before training: `python -m pipelines VERB`."""
