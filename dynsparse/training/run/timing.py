"""Times of the lock, in seconds. Tests set other values."""

BEAT_SECONDS = 5.0
"""Interval of signs of life."""
STALE_SECONDS = 30.0
"""Silence after which a holder counts as dead. Six beats: storage that others use may stand still for a while."""
POLL_SECONDS = 0.2
"""Pause before the next look at a lock that another holds."""
