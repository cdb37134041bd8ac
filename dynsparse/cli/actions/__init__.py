"""What `train` can be asked to do: one action a file."""
