"""The sidecar's own container, as the API takes it: pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from sidecar import __version__
from sidecar.control.injection.object_fields import Json
from sidecar.control.injection.pod_annotations import PodRequest
from sidecar.control.injection.quantity import parse_quantity
from sidecar.pod import CONTAINER_NAME, POD_VARIABLES, STOP_WITH_EXPERIMENT_VARIABLE
from sidecar.spec import (
    SPEC_FILE,
    PersistenceSpec,
)

DEFAULT_IMAGE: Final = f"mount-sidecar:{__version__}"
PORT_NAME: Final = "sidecar-metrics"
"""For a PodMonitor."""

_PROBE_PERIOD_S: Final = 1
_PROBE_MARGIN_S: Final = 30
"""The sidecar ends by itself when it is not ready in time, and says why; a probe cannot."""


@dataclass(frozen=True, slots=True)
class Injection:
    """How a cluster wants it.

    Attributes:
        image: of the sidecar.
        native: as an init container with ``restartPolicy: Always`` (Kubernetes 1.29); else the
            first of the containers, whose postStart keeps the others waiting.
    """

    image: str = DEFAULT_IMAGE
    native: bool = True


def sidecar_container(
    spec: PersistenceSpec,
    request: PodRequest,
    injection: Injection,
    mounts: list[Json],
    *,
    pod_grace_s: int,
    stop_with_experiment: bool,
) -> Json:
    """The container.

    Args:
        mounts: its ``volumeMounts``.
        pod_grace_s: what the pod gives the experiment to end.
        stop_with_experiment: it ends by itself when the other containers have (not native).
    """
    port = spec.http.port
    environment: list[Json] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in POD_VARIABLES.items()
    ]
    if stop_with_experiment:
        environment.append({"name": STOP_WITH_EXPERIMENT_VARIABLE, "value": "true"})
    container: Json = {
        "name": CONTAINER_NAME,
        "image": injection.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["mount", "--spec", SPEC_FILE],
        "env": environment,
        "ports": [{"name": PORT_NAME, "containerPort": port}],
        "resources": _resources(len(spec.buckets), request),
        "volumeMounts": mounts,
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": port},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "terminationMessagePath": spec.roots.termination_message,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # Everything that privileged mode leaves to be restricted: the API refuses
        # allowPrivilegeEscalation: false beside it, and runtimes ignore dropped
        # capabilities and seccomp profiles. Mounting needs root, whatever the pod says.
        "securityContext": {
            "privileged": True,
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
        },
    }
    if injection.native:
        container["restartPolicy"] = "Always"
        container["startupProbe"] = {
            "httpGet": {"path": "/startupz", "port": port},
            "periodSeconds": _PROBE_PERIOD_S,
            "timeoutSeconds": 5,
            "failureThreshold": int(spec.times.ready_timeout_s + _PROBE_MARGIN_S),
        }
    else:
        wait_s = int(spec.times.ready_timeout_s + _PROBE_MARGIN_S)
        container["lifecycle"] = {
            # A kubelet starts containers in order, and waits for this before the next.
            "postStart": {"exec": {"command": ["sidecar", "wait", "--timeout", str(wait_s)]}},
            # Every container gets SIGTERM at once: the experiment must have its time first.
            "preStop": {"exec": {"command": ["sleep", str(pod_grace_s)]}},
        }
        # Liveness begins with the container here, not after a startup probe.
        container["livenessProbe"]["initialDelaySeconds"] = 10
    return container


def sidecar_mounts(spec: PersistenceSpec, names: dict[str, str]) -> list[Json]:
    """The ``volumeMounts`` of the sidecar.

    Args:
        names: pod volumes by what they are for, as ``inject`` makes them.
    """
    roots = spec.roots
    mounts: list[Json] = [
        # Privileged, because the API wants it for Bidirectional, and the device cgroup for
        # /dev/fuse; so that what is mounted here is seen by the other containers.
        {"name": names["shared"], "mountPath": roots.shared, "mountPropagation": "Bidirectional"},
        {"name": names["state"], "mountPath": roots.state},
        {
            "name": names["spec"],
            "mountPath": str(PurePosixPath(SPEC_FILE).parent),
            "readOnly": True,
        },
    ]
    if spec.buckets:
        mounts.append({"name": names["fuse"], "mountPath": "/dev/fuse"})
    mounts += [
        {"name": names[f"secret {name}"], "mountPath": f"{roots.secrets}/{name}", "readOnly": True}
        for name in secret_keys(spec)
    ]
    for volume in spec.volumes:
        if not volume.is_bucket:
            mounts.append(
                path_mount(names[f"{volume.kind} {volume.name}"], volume.path, volume.read_only)
            )
    return mounts


def path_mount(name: str, path: str, read_only: bool) -> Json:
    """An ordinary mount of a pod volume."""
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def secret_keys(spec: PersistenceSpec) -> dict[str, list[str]]:
    """The keys that are needed of each secret, in the volumes' order."""
    wanted: dict[str, list[str]] = {}
    for volume in spec.buckets:
        source: Any = volume.source
        if source.secret is not None and source.secret_key not in wanted.setdefault(
            source.secret, []
        ):
            wanted[source.secret].append(source.secret_key)
    return wanted


def _resources(buckets: int, request: PodRequest) -> Json:
    """Requests and limits: the annotations', else what so many workers were seen to need.

    No limit of CPU, which would only slow the experiment down. A request is lowered to an
    annotated limit, and a limit raised to an annotated request.
    """
    defaults = {
        "cpu-request": "100m",
        "memory-request": f"{128 + 192 * buckets}Mi",
        "memory-limit": f"{256 + 768 * buckets}Mi",
    }
    chosen = {**defaults, **request.resources}
    for resource in ("cpu", "memory"):
        low, high = f"{resource}-request", f"{resource}-limit"
        if high in chosen and _number(chosen[low]) > _number(chosen[high]):
            changed, kept = (low, high) if low not in request.resources else (high, low)
            if changed not in request.resources:
                chosen[changed] = chosen[kept]
    resources: Json = {"requests": {}, "limits": {}}
    for key, value in chosen.items():
        resource, _, bound = key.rpartition("-")
        resources[f"{bound}s"][resource] = value
    return resources


def _number(quantity: str) -> float:
    parsed = parse_quantity(quantity)
    assert parsed is not None  # annotations are checked when they are read
    return float(parsed)
