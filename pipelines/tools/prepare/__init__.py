"""`python -m pipelines prepare`: folders that training reads, made of the archives that data sets come in."""
