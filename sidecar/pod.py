"""What the pod and the sidecar in it know each other by. Standard library only.

The control half writes these names into a pod, process 1 and its children read them.
"""

from __future__ import annotations

import os
from typing import Final

CONTAINER_NAME: Final = "mount-sidecar"
"""Of the sidecar in a pod."""

POD_VARIABLES: Final = {
    "SIDECAR_POD_NAME": "metadata.name",
    "SIDECAR_POD_NAMESPACE": "metadata.namespace",
    "SIDECAR_POD_UID": "metadata.uid",
    "SIDECAR_NODE_NAME": "spec.nodeName",
}
"""Variables of the sidecar, and the field of the pod that each holds."""

STOP_WITH_EXPERIMENT_VARIABLE: Final = "SIDECAR_STOP_WITH_EXPERIMENT"
"""Set where the sidecar must end by itself when the pod's other containers have."""


def is_in_pod() -> bool:
    """Whether it is known here which pod this is."""
    return all(name in os.environ for name in POD_VARIABLES)
