"""Services that show runs, such as W&B and MLflow: one tracker a file."""

from dynsparse.training.callbacks.tracking.installed import require_trackers, trackings

__all__ = ["require_trackers", "trackings"]
