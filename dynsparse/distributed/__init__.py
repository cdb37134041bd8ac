"""Communication between ranks: collectives (sync.py), digests (digest.py), gradients (allreduce.py)."""
