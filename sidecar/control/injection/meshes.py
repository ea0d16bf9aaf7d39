"""Service meshes in a pod: where their containers stand beside the sidecar. Pure.

A mesh sends all traffic of a pod through its proxy. The sidecar reaches its stores only while the
proxy runs, so it must start after the proxy and end before it. Native sidecars start in the order
of ``initContainers`` and end in the reverse order.
"""

from __future__ import annotations

from typing import Final

from sidecar.control.injection.object_fields import JsonObject, get_mapping, get_mappings

PROXIES: Final = ("istio-proxy", "linkerd-proxy")
_HELPERS: Final = ("istio-init", "istio-validation", "linkerd-init", "linkerd-network-validator")
"""Init containers that redirect the traffic, or check that a CNI plugin has done so. Without the
proxy they are of no use."""
_SPEC: Final = "pod.spec"


def is_of_mesh(container: JsonObject) -> bool:
    """Whether a mesh has added the container. Such a container gets nothing from us."""
    return container.get("name") in (*PROXIES, *_HELPERS)


def has_native_proxy(pod_spec: JsonObject) -> bool:
    """Whether the pod has a mesh whose proxy is a native sidecar.

    Raises:
        ManifestInvalid: the pod has a wrong shape.
    """
    return any(
        container.get("name") in PROXIES and container.get("restartPolicy") == "Always"
        for container in get_mappings(pod_spec, "initContainers", _SPEC)
    )


def put_mesh_first(pod_spec: JsonObject) -> None:
    """Put a mesh with a native proxy before all other init containers, in place.

    Other containers keep their order. Without such a proxy nothing is moved: redirected traffic
    would go nowhere until the ordinary containers start.

    Raises:
        ManifestInvalid: the pod has a wrong shape.
    """
    if has_native_proxy(pod_spec):
        pod_spec["initContainers"] = sorted(
            pod_spec["initContainers"], key=lambda container: not is_of_mesh(container)
        )


def remarks(metadata: JsonObject, pod_spec: JsonObject) -> list[str]:
    """What the person who injects should know about the pod's mesh, one line each.

    Args:
        metadata: of the pod.

    Raises:
        ManifestInvalid: the pod has a wrong shape.
    """
    said = []
    for name in PROXIES:
        if any(c.get("name") == name for c in get_mappings(pod_spec, "containers", _SPEC)):
            said.append(
                f"`{name}` is an ordinary container, and ends before the sidecar has saved: make "
                "it a native sidecar, or exclude the stores' ports from the mesh"
            )
        elif any(c.get("name") == name for c in get_mappings(pod_spec, "initContainers", _SPEC)):
            said.append(f"`{name}` starts before the sidecar, and ends after it")
    labels = get_mapping(metadata, "labels", "pod.metadata")
    annotations = get_mapping(metadata, "annotations", "pod.metadata")
    istio = "sidecar.istio.io/inject"
    asks = (
        "true" in (labels.get(istio), annotations.get(istio))
        or annotations.get("linkerd.io/inject") == "enabled"
    )
    if asks and not said:
        said.append(
            "the mesh that it asks for will be added later: its proxy must be a native sidecar, "
            "and the webhook of mount-sidecar puts it first"
        )
    return said
