"""How often the holder of a lock shows that it lives, and how long silence is trusted. Tests set other values."""

BEAT_SECONDS = 5.0
"""Between two signs of life."""
STALE_SECONDS = 30.0
"""Silence after which a holder counts as dead. Six beats: storage that others use may stand still for a while."""
POLL_SECONDS = 0.2
"""Between two looks at a lock that another holds."""
