"""A run's folder: the names of its files, the lock that keeps it to one run, and the reader of its logs."""
