"""Keeping ranks in step: plans and digests (sync.py, digest.py)."""
