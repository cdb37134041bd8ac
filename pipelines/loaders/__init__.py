"""Loaders: DALI, and torch's DataLoader. Both deliver the same images in the given order."""
