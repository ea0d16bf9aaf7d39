"""Names that the control half writes into a pod, and that the sidecar in it reads.

Standard library only, because process 1 loads it.
"""

from __future__ import annotations

import os
from typing import Final

CONTAINER_NAME: Final = "mount-sidecar"
"""The sidecar's container in a pod."""

RESERVED_PREFIX: Final = f"{CONTAINER_NAME}-"
"""The beginning of the names of all the sidecar's pod volumes, and of no others."""

SHARED_SUFFIX: Final = "shared"
"""After the prefix: the volume with the mounts. Only the sidecar and the experiment have it."""
STATE_SUFFIX: Final = "state"
"""After the prefix: the volume with the sidecar's state directory."""

NAMESPACE_VARIABLE: Final = "SIDECAR_POD_NAMESPACE"
UID_VARIABLE: Final = "SIDECAR_POD_UID"
SERVICE_ACCOUNT_NAME_VARIABLE: Final = "SIDECAR_POD_SERVICE_ACCOUNT"

POD_VARIABLES: Final = {
    "SIDECAR_POD_NAME": "metadata.name",
    NAMESPACE_VARIABLE: "metadata.namespace",
    UID_VARIABLE: "metadata.uid",
    "SIDECAR_NODE_NAME": "spec.nodeName",
}
"""The sidecar's environment variables, and the field of the pod that each holds."""

READY_FILE: Final = "ready"
ALIVE_FILE: Final = "alive"
"""A file in the sidecar's state directory, which probes that are commands check (decision 49)."""

STOP_WITH_EXPERIMENT_VARIABLE: Final = "SIDECAR_STOP_WITH_EXPERIMENT"
"""Set if the sidecar must end by itself once the pod's other containers have ended."""

PROXY_VARIABLES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
"""Variables of the sidecar, and keys of the secrets that hold a proxy."""

STOPPING_FILE: Final = "stopping"
"""A file in the state directory, made when the pod begins to end. Its text is the grace period."""

OVERDUE_FILE: Final = "overdue"
"""A file in the state directory, made when the experiment's own grace period is over. Its text is
the names of the containers that the node's janitor is to end."""

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""The folder in which a kubelet mounts the pod's token, and the API server's authority."""

SERVICE_ACCOUNT_VARIABLE: Final = "SIDECAR_SERVICE_ACCOUNT"
"""Names another folder with these files, ``token`` and ``ca.crt``."""


def is_in_pod() -> bool:
    """Whether this process runs in a pod that it can name."""
    return all(name in os.environ for name in POD_VARIABLES)
