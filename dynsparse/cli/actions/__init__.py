"""The actions of `train`, one a file."""
