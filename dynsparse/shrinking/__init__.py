"""Channels that do nothing, in any network: found, and taken out without a change of what the network computes."""

from dynsparse.shrinking.compact import Compacted, compact

__all__ = ["Compacted", "compact"]
