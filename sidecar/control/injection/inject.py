"""A pod to the same pod with the sidecar, or to a patch. Pure.

Everything in the pod is kept, unknown fields too. Something of the pod's own that is in the way is
an error that names it. Only the run's two variables are replaced: setting them is the injection's
purpose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

from sidecar.contract.pod import CONTAINER_NAME
from sidecar.contract.spec import PersistenceSpec
from sidecar.contract.spec_document import load_spec
from sidecar.control.catalogue.catalogue import Catalogue
from sidecar.control.injection.experiment_container import equip_containers
from sidecar.control.injection.json_patch import difference
from sidecar.control.injection.meshes import has_native_proxy, is_of_mesh, put_mesh_first
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_string,
    get_whole_number,
)
from sidecar.control.injection.pod_annotations import (
    SPEC_ANNOTATION,
    STATUS_ANNOTATION,
    PodRequest,
    parse_pod_request,
)
from sidecar.control.injection.pod_checks import (
    CONTAINER_GROUPS,
    check_depth,
    refuse_reserved_names,
    refuse_shared_pids,
    refuse_undeclared_mounts,
    refuse_unsupported,
    volume_names,
)
from sidecar.control.injection.pod_spec import (
    DEFAULT_GRACE_S,
    disk_limit,
    memory_cache_bytes,
    spec_of_pod,
    state_bytes,
)
from sidecar.control.injection.pod_volumes import add_volumes
from sidecar.control.injection.previous_injection import (
    agrees,
    find_sidecars,
    keep_additions,
    remove_sidecar,
)
from sidecar.control.injection.sidecar_container import Injection, sidecar_container
from sidecar.control.injection.store_network import with_network
from sidecar.errors import ManifestInvalid, PodConflict, PodUnsupported, SpecTooLarge
from sidecar.units import KIB

INJECTED: Final = "injected"
"""The status annotation's value."""
ANNOTATIONS_BYTES: Final = 256 * KIB
"""The API's limit for all annotations of an object together (TotalAnnotationSizeLimitB)."""

_SPEC: Final = "pod.spec"


def pod_patch(pod: JsonObject, catalogue: Catalogue, injection: Injection) -> list[JsonObject]:
    """The JSON Patch (RFC 6902) that adds the sidecar; empty if the pod has it already.

    Raises:
        ConfigError: see :func:`inject`.
    """
    return difference(pod, inject(pod, catalogue, injection))


def inject(
    pod: JsonObject, catalogue: Catalogue, injection: Injection, claims: Collection[str] = ()
) -> JsonObject:
    """A copy of a pod or pod template with the sidecar; ``pod`` itself if nothing is to change.

    An earlier injection is made anew, whoever made it: a replica of another version,
    `sidecar inject`, or the pod's author.

    Args:
        claims: names of volumes that a StatefulSet adds to its pods.

    Raises:
        ConfigError: the annotations cannot be resolved with the catalogue, the sidecar cannot
            work in such a pod, or something of the pod's own is in the way, has our names, or
            would reach what belongs to the sidecar.
    """
    check_depth(pod, "pod")
    made = _copied(pod)
    if is_injected := _is_injected(pod):
        remove_sidecar(made)
    _inject_into(made, catalogue, injection, claims)
    if is_injected:
        keep_additions(made["spec"], pod["spec"])
        if agrees(pod, made):
            return pod
    return made


def _copied(pod: JsonObject) -> JsonObject:
    """A copy of what an injection changes in a pod. The rest is shared: it may be large."""
    metadata, pod_spec = get_mapping(pod, "metadata", "pod"), get_mapping(pod, "spec", "pod")
    annotations = get_mapping(metadata, "annotations", "pod.metadata")
    groups = {
        group: [dict(container) for container in get_mappings(pod_spec, group, _SPEC)]
        for group in CONTAINER_GROUPS
        if group in pod_spec
    }
    return {
        **pod,
        "metadata": {**metadata, "annotations": dict(annotations)},
        "spec": {**pod_spec, **groups},
    }


def _inject_into(
    pod: JsonObject, catalogue: Catalogue, injection: Injection, claims: Collection[str]
) -> None:
    """Add the sidecar to a pod that has none, in place."""
    pod_spec = get_mapping(pod, "spec", "pod")
    if not get_mappings(pod_spec, "containers", _SPEC):
        raise ManifestInvalid(f"{_SPEC}.containers: is empty")
    refuse_shared_pids(pod_spec, injection)
    refuse_undeclared_mounts(pod_spec, claims)
    refuse_reserved_names([*claims, *volume_names(pod_spec)])
    refuse_unsupported(pod_spec, injection)
    request = parse_pod_request(get_mapping(pod, "metadata", "pod"), "pod.metadata")
    spec = with_network(spec_of_pod(pod_spec, request, catalogue), injection.network)
    _refuse_unguarded(spec, injection)
    _annotate(pod, spec)
    _add_sidecar(pod_spec, spec, request, injection)


def _is_injected(pod: JsonObject) -> bool:
    """Whether the pod has our annotation and a container with our name.

    The annotation alone proves nothing: annotations are copied with templates.

    Raises:
        PodConflict: a container has our name, and the annotation is not there.
    """
    if not find_sidecars(get_mapping(pod, "spec", "pod")):
        return False
    annotations = get_mapping(get_mapping(pod, "metadata", "pod"), "annotations", "pod.metadata")
    if STATUS_ANNOTATION not in annotations:
        raise PodConflict(f"a container of the pod is named `{CONTAINER_NAME}`", "rename it")
    return True


def injected_spec(pod: JsonObject) -> PersistenceSpec:
    """The spec that an injected pod carries. Raises ConfigError."""
    metadata = get_mapping(pod, "metadata", "pod")
    annotations = get_mapping(metadata, "annotations", "pod.metadata")
    text = get_string(annotations, SPEC_ANNOTATION, "pod.metadata.annotations")
    return load_spec(text, f"annotation `{SPEC_ANNOTATION}`")


def _refuse_unguarded(spec: PersistenceSpec, injection: Injection) -> None:
    """Refuse a bucket with a ``mountPath`` where the sidecar is an ordinary container.

    If an ordinary sidecar fails, the experiment starts all the same. Below the shared root it
    finds nothing and cannot make anything. At a ``mountPath`` it would find an empty directory,
    and what it saves there would be lost.
    """
    for volume in spec.volumes:
        if not injection.native and volume.mountpoint not in {None, volume.path}:
            raise PodUnsupported(
                f"bucket volume {volume.label} has a `mountPath` ({volume.path}), and "
                "without native sidecars a failed mount would be an empty directory there",
                "use native sidecars (Kubernetes 1.29), or leave its `mountPath` out",
            )


def _annotate(pod: JsonObject, spec: PersistenceSpec) -> None:
    annotations = pod["metadata"]["annotations"]
    annotations[STATUS_ANNOTATION] = INJECTED
    annotations[SPEC_ANNOTATION] = _spec_text(spec)
    size_bytes = sum(len(f"{key}{value}".encode()) for key, value in annotations.items())
    if size_bytes > ANNOTATIONS_BYTES:
        raise SpecTooLarge(
            f"the pod's annotations and its spec of {len(spec.volumes)} volumes take "
            f"{size_bytes // KIB} KiB of the {ANNOTATIONS_BYTES // KIB} that Kubernetes keeps",
            "select fewer volumes with the annotation `mount-sidecar.io/data`",
        )


def _spec_text(spec: PersistenceSpec) -> str:
    """The annotation's value."""
    return spec.to_json(indent=None)


def _add_sidecar(
    pod_spec: JsonObject, spec: PersistenceSpec, request: PodRequest, injection: Injection
) -> None:
    """Add volumes, the sidecar, and what the other containers get, in place."""
    grace_s = get_whole_number(pod_spec, "terminationGracePeriodSeconds", _SPEC)
    grace_s = DEFAULT_GRACE_S if grace_s is None else grace_s
    names = add_volumes(
        pod_spec,
        spec,
        state_bytes=state_bytes(spec),
        memory_cache_bytes=memory_cache_bytes(spec),
    )
    groups = [get_mappings(pod_spec, group, _SPEC) for group in ("initContainers", "containers")]
    others = [container for group in groups for container in group if not is_of_mesh(container)]
    equip_containers(others, spec, pod_spec["volumes"], names)
    sidecar = sidecar_container(
        spec,
        request,
        injection,
        names,
        spec_sha256=hashlib.sha256(_spec_text(spec).encode()).hexdigest(),
        pod_grace_s=grace_s,
        disk_limit=disk_limit(pod_spec, spec, request),
        memory_cache_bytes=memory_cache_bytes(spec),
        in_mesh=has_native_proxy(pod_spec),
        host_network=bool(pod_spec.get("hostNetwork")),
        # An ordinary container would keep a pod that runs to completion from completing.
        stop_with_experiment=(
            not injection.native and pod_spec.get("restartPolicy") not in (None, "Always")
        ),
    )
    group = "initContainers" if injection.native else "containers"
    pod_spec[group] = [sidecar, *get_mappings(pod_spec, group, _SPEC)]
    put_mesh_first(pod_spec)
    # The experiment keeps all of its own time, and the sidecar has its own after it.
    pod_spec["terminationGracePeriodSeconds"] = grace_s + int(spec.times.grace_s)
