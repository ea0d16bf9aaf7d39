"""The sidecar's own container. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from sidecar import __version__
from sidecar.contract.memory_rule import least_limit_bytes, limit_bytes, request_bytes
from sidecar.contract.pod import (
    ALIVE_FILE,
    CONTAINER_NAME,
    POD_VARIABLES,
    PROXY_VARIABLES,
    READY_FILE,
    SERVICE_ACCOUNT_NAME_VARIABLE,
    STOP_WITH_EXPERIMENT_VARIABLE,
    STOPPING_FILE,
)
from sidecar.contract.spec import (
    HTTP_PORT,
    SPEC_FILE,
    PersistenceSpec,
    config_map_folder,
)
from sidecar.control.catalogue.quantity import parse_quantity
from sidecar.control.injection.object_fields import JsonObject
from sidecar.control.injection.pod_annotations import PREFIX, PodRequest
from sidecar.control.injection.pod_volumes import VolumeNames, volume_mount
from sidecar.control.injection.store_network import NO_NETWORK, Network
from sidecar.errors import AnnotationInvalid
from sidecar.units import MIB

DEFAULT_IMAGE: Final = f"mount-sidecar:{__version__}"
PORT_NAME: Final = "sidecar-metrics"
"""A PodMonitor finds the port by this name."""

_DISK_REQUEST: Final = "256Mi"
_PROBE_MARGIN_S: Final = 30
"""How much longer than the ready timeout probes wait: a sidecar that ends by itself says why."""


@dataclass(frozen=True, slots=True)
class Injection:
    """How a cluster runs the sidecar.

    Attributes:
        image: the sidecar's image.
        native: True: an init container with ``restartPolicy: Always`` (Kubernetes 1.29). False:
            the first ordinary container, whose postStart keeps the others waiting.
        allow_shared_pids: whether a pod may let the experiment see the sidecar's processes
            (``shareProcessNamespace``, ``hostPID``).
        network: how stores are reached unless the catalogue says it.
    """

    image: str = DEFAULT_IMAGE
    native: bool = True
    allow_shared_pids: bool = False
    network: Network = NO_NETWORK


def sidecar_container(
    spec: PersistenceSpec,
    request: PodRequest,
    injection: Injection,
    names: VolumeNames,
    *,
    spec_sha256: str,
    pod_grace_s: int,
    disk_limit: str | None,
    memory_cache_bytes: int,
    in_mesh: bool,
    host_network: bool,
    stop_with_experiment: bool,
) -> JsonObject:
    """The container, as the API takes it.

    Args:
        names: the pod volumes that it mounts.
        spec_sha256: digest of the annotation that holds the spec, in hexadecimal.
        pod_grace_s: time that the pod gives the experiment to end, in seconds.
        disk_limit: on its ephemeral storage, as a quantity; None: no limit.
        memory_cache_bytes: how much of its memory limit caches in memory take.
        in_mesh: network traffic to the sidecar passes a mesh's proxy.
        host_network: the pod has no network of its own.
        stop_with_experiment: the sidecar ends by itself once the other containers have ended.
    """
    environment: list[JsonObject] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in POD_VARIABLES.items()
    ]
    if spec.node_cache.scope == "login" and names.node_cache is not None:
        environment.append(
            {
                "name": SERVICE_ACCOUNT_NAME_VARIABLE,
                "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}},
            }
        )
    if stop_with_experiment:
        environment.append({"name": STOP_WITH_EXPERIMENT_VARIABLE, "value": "true"})
    if (secret := injection.network.proxy_secret) is not None:
        environment += [
            {
                "name": name,
                "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}},
            }
            for name in PROXY_VARIABLES
        ]
    container: JsonObject = {
        "name": CONTAINER_NAME,
        "image": injection.image,
        "imagePullPolicy": "IfNotPresent",
        # The digest, because the annotation that the file shows may be changed at any time.
        "args": ["mount", "--spec", SPEC_FILE, "--spec-sha256", spec_sha256],
        "env": environment,
        **_ports(spec, host_network=host_network),
        "resources": _resources(len(spec.buckets), request, disk_limit, memory_cache_bytes),
        "volumeMounts": _mounts(spec, names),
        "livenessProbe": {
            **_is_alive(spec, in_mesh=in_mesh),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "terminationMessagePath": spec.roots.termination_message,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # Privileged mode leaves nothing more to restrict: the API refuses
        # allowPrivilegeEscalation: false beside it, and runtimes ignore dropped capabilities
        # and seccomp profiles. Mounting needs root, whatever the pod's own context says.
        "securityContext": {
            "privileged": True,
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
        },
    }
    # A kubelet runs this when the pod begins to end, and sends SIGTERM after the experiment's end.
    total_s = pod_grace_s + int(spec.times.grace_s)
    notice = f"echo {total_s} >{shlex.quote(f'{spec.roots.state}/{STOPPING_FILE}')}"
    if injection.native:
        container["restartPolicy"] = "Always"
        container["lifecycle"] = {"preStop": _shell(notice)}
        # One probe that waits: each probe that fails is an event, which alarms the pod's author.
        container["startupProbe"] = {
            **_shell(_until_ready(spec)),
            "periodSeconds": 1,
            "timeoutSeconds": int(spec.times.ready_timeout_s + _PROBE_MARGIN_S),
            "failureThreshold": 3,
        }
    else:
        container["lifecycle"] = {
            # A kubelet starts containers in order, and waits for postStart before the next.
            "postStart": _wait(spec),
            # All containers get SIGTERM at the same time; the experiment must end first.
            "preStop": _shell(f"{notice}; exec sleep {pod_grace_s}"),
        }
        # Without a startup probe, liveness is checked from the container's start.
        container["livenessProbe"]["initialDelaySeconds"] = 10
    return container


def _shell(script: str) -> JsonObject:
    """A hook or a probe as a shell script, which takes a hundredth of Python's time."""
    return {"exec": {"command": ["sh", "-c", script]}}


def _ports(spec: PersistenceSpec, *, host_network: bool) -> JsonObject:
    """The field ``ports``, if there is one.

    On the node's network the API server would add the node's port.
    """
    if spec.http.port is None:
        return {}
    port = {"name": PORT_NAME, "containerPort": spec.http.port}
    return {"ports": [port | ({"hostPort": spec.http.port} if host_network else {})]}


def _is_alive(spec: PersistenceSpec, *, in_mesh: bool) -> JsonObject:
    """The part of the liveness probe that says how the sidecar is checked.

    Not by HTTP in a mesh: a proxy that demands TLS refuses a kubelet's requests.
    """
    if spec.http.port is not None and not in_mesh:
        return {"httpGet": {"path": "/livez", "port": spec.http.port}}
    # A process's directory in /proc is as old as the process; the file's time is in the future.
    return {"exec": {"command": ["test", f"{spec.roots.state}/{ALIVE_FILE}", "-nt", "/proc/self"]}}


def _until_ready(spec: PersistenceSpec) -> str:
    """A script that returns when the sidecar is ready, or when the sidecar ends before that.

    The state directory outlives a container; a kubelet makes the other file for each container.
    """
    is_ready = [f"{spec.roots.state}/{READY_FILE}", "-nt", spec.roots.termination_message]
    return f"until test {shlex.join(is_ready)}; do sleep 0.1; done"


def _wait(spec: PersistenceSpec) -> JsonObject:
    """A hook that returns when the sidecar is ready, and says why if it is not."""
    if spec.http.port is None:
        return _shell(_until_ready(spec))
    wait_s = int(spec.times.ready_timeout_s + _PROBE_MARGIN_S)
    port = [] if spec.http.port == HTTP_PORT else ["--port", str(spec.http.port)]
    return {"exec": {"command": ["sidecar", "wait", *port, "--timeout", str(wait_s)]}}


def _mounts(spec: PersistenceSpec, names: VolumeNames) -> list[JsonObject]:
    roots = spec.roots
    mounts: list[JsonObject] = [
        # Bidirectional, so that the other containers see what is mounted here. The API allows it
        # in privileged containers only; the device cgroup does the same for /dev/fuse.
        {"name": names.shared, "mountPath": roots.shared, "mountPropagation": "Bidirectional"},
        {"name": names.state, "mountPath": roots.state},
        {"name": names.spec, "mountPath": str(PurePosixPath(SPEC_FILE).parent), "readOnly": True},
    ]
    if names.fuse is not None:
        mounts.append({"name": names.fuse, "mountPath": "/dev/fuse"})
    if names.node_cache is not None:
        mounts.append({"name": names.node_cache, "mountPath": roots.node_cache})
    if names.memory_cache is not None:
        mounts.append({"name": names.memory_cache, "mountPath": roots.memory_cache})
    mounts += [
        volume_mount(name, f"{roots.secrets}/{secret}", read_only=True)
        for secret, name in names.secrets.items()
    ]
    mounts += [
        volume_mount(name, f"{roots.secrets}/{config_map_folder(config_map)}", read_only=True)
        for config_map, name in names.authorities.items()
    ]
    mounts += [
        volume_mount(names.of_directory(volume), volume.path, volume.read_only)
        for volume in spec.volumes
        if not volume.is_bucket
    ]
    return mounts


def _resources(
    buckets: int, request: PodRequest, disk_limit: str | None, memory_cache_bytes: int
) -> JsonObject:
    """Requests and limits: as annotated, else what that many workers were measured to need.

    CPU has no limit by default, which would only slow the experiment down. A default request
    is lowered to an annotated limit, and a default limit raised to an annotated request. Caches in
    memory count in the limit.

    Raises:
        AnnotationInvalid: the sidecar would not start with such a limit of memory.
    """
    defaults = {
        "cpu-request": parse_quantity(f"{20 + 10 * buckets}m"),
        "memory-request": parse_quantity(f"{request_bytes(buckets) // MIB}Mi"),
        "memory-limit": parse_quantity(
            f"{(limit_bytes(buckets) + memory_cache_bytes + MIB - 1) // MIB}Mi"
        ),
    }
    chosen = {**defaults, **request.resources}
    for resource in ("cpu", "memory"):
        low, high = f"{resource}-request", f"{resource}-limit"
        if high in chosen and chosen[low].value > chosen[high].value:
            changed, kept = (low, high) if low not in request.resources else (high, low)
            if changed not in request.resources:
                chosen[changed] = chosen[kept]
    least_bytes = least_limit_bytes(buckets) + memory_cache_bytes
    if chosen["memory-limit"].value < least_bytes:
        raise AnnotationInvalid(
            f"annotation `{PREFIX}memory-limit`: {chosen['memory-limit'].text} is below the "
            f"{least_bytes // MIB}Mi that a sidecar with {buckets} bucket(s) needs"
            + (", its cache in memory included" if memory_cache_bytes else "")
        )
    resources: JsonObject = {"requests": {}, "limits": {}}
    for annotation, quantity in chosen.items():
        resource, _, bound = annotation.rpartition("-")
        if resource in ("cpu", "memory"):
            resources[f"{bound}s"][resource] = quantity.text
    if disk_limit is not None:
        resources["limits"]["ephemeral-storage"] = disk_limit
        # Without a request the API would request the limit, and the spool is rarely full.
        quantities = parse_quantity(_DISK_REQUEST), parse_quantity(disk_limit)
        least = min(quantities, key=lambda quantity: quantity.value)
        resources["requests"]["ephemeral-storage"] = least.text
    return resources
