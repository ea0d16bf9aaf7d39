"""Python loads this at the start of a sidecar whose PYTHONPATH names this folder and the root."""

from tests.support import lock_order

lock_order.install()
