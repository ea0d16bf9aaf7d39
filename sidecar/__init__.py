"""mount-sidecar: cloud buckets as directories for experiment pods."""

__version__ = "0.1.0"
