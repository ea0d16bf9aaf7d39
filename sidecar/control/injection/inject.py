"""The sidecar put into a pod: (pod, spec) to a patch, pure.

What the pod has stays; what is not known is not touched. Where something of the pod's own is
in the way, that is an error that names it, never a silent replacement; the two variables of
the run alone are replaced, since they are what is asked for.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from sidecar.control.catalogue.catalogue import Catalogue
from sidecar.control.catalogue.paths import contains
from sidecar.control.injection.json_patch import difference
from sidecar.control.injection.object_fields import Json, mapping, mappings, number, text
from sidecar.control.injection.pod_annotations import (
    SPEC_ANNOTATION,
    STATUS_ANNOTATION,
    PodRequest,
    parse_pod_request,
)
from sidecar.control.injection.pod_spec import DEFAULT_GRACE_S, spec_of_pod, state_bytes
from sidecar.control.injection.sidecar_container import (
    Injection,
    path_mount,
    secret_keys,
    sidecar_container,
    sidecar_mounts,
)
from sidecar.errors import ManifestInvalid, PodConflict, PodUnsupported, SpecTooLarge
from sidecar.pod import CONTAINER_NAME
from sidecar.spec import ClaimSource, HostPathSource, PersistenceSpec, Volume
from sidecar.units import KIB

INJECTED: Final = "injected"
"""Value of the status annotation."""
ANNOTATIONS_BYTES: Final = 256 * KIB
"""What the API keeps of all annotations of an object together (TotalAnnotationSizeLimitB)."""

_SHARED_BYTES: Final = "16Mi"
"""Of the shared emptyDir: empty directories and a status file. What is in a mount does not
count, since the kubelet does not descend into other devices (pkg/volume/util/fs)."""
_SECRET_MODE: Final = 0o400
_SPEC: Final = "pod.spec"


def pod_patch(pod: Json, catalogue: Catalogue, injection: Injection) -> list[Json]:
    """The JSON Patch (RFC 6902) that adds the sidecar; empty where it is there already.

    Raises:
        ConfigError: see :func:`inject`.
    """
    return difference(pod, inject(pod, catalogue, injection))


def inject(pod: Json, catalogue: Catalogue, injection: Injection) -> Json:
    """A copy of a pod, or of a pod template, with the sidecar added; ``pod`` itself if it has it.

    Raises:
        ConfigError: its annotations select nothing that the catalogue has, it is of a kind in
            which the sidecar cannot work, or something of its own is in the way.
    """
    metadata = mapping(pod, "metadata", "pod")
    pod_spec = mapping(pod, "spec", "pod")
    if not mappings(pod_spec, "containers", "pod.spec"):
        raise ManifestInvalid("pod.spec.containers: is empty")
    if _is_injected(metadata, pod_spec):
        return pod
    _refuse_unsupported(pod_spec, injection)
    request = parse_pod_request(metadata, "pod.metadata")
    spec = spec_of_pod(pod_spec, request, catalogue)
    _refuse_unguarded(spec, injection)
    pod = copy.deepcopy(pod)
    _annotate(pod, spec)
    _Pod(pod["spec"], spec, request, injection).add()
    return pod


def _is_injected(metadata: Json, pod_spec: Json) -> bool:
    """Whether it has our annotation and our container.

    Either alone is no sign: an annotation is copied with a template, and a container that
    happens to have the name is another's.
    """
    named = [
        container
        for group in ("initContainers", "containers")
        for container in mappings(pod_spec, group, "pod.spec")
        if container.get("name") == CONTAINER_NAME
    ]
    if not named:
        return False
    annotations = mapping(metadata, "annotations", "pod.metadata")
    if STATUS_ANNOTATION not in annotations:
        raise PodConflict(f"a container of the pod is named `{CONTAINER_NAME}`", "rename it")
    return True


def _refuse_unsupported(pod_spec: Json, injection: Injection) -> None:
    system = mapping(pod_spec, "os", "spec").get("name")
    selected = mapping(pod_spec, "nodeSelector", "spec").get("kubernetes.io/os")
    if "windows" in (system, selected):
        raise PodUnsupported("the pod is for Windows nodes", "FUSE mounts need Linux")
    if pod_spec.get("hostUsers") is False:
        raise PodUnsupported(
            "the pod has `hostUsers: false`",
            "remove it: mounts reach the other containers only from the node's user namespace",
        )
    if not injection.native and mappings(pod_spec, "initContainers", "spec"):
        raise PodUnsupported(
            "the pod has init containers, which end before any other container starts",
            "use native sidecars (Kubernetes 1.29), or do their work in the main container",
        )


def _refuse_unguarded(spec: PersistenceSpec, injection: Injection) -> None:
    """Nothing keeps an experiment from starting where an ordinary sidecar container fails.

    Below the shared root it then finds nothing and can make nothing; but a directory of its
    own is there, empty, and what it saves there is lost.
    """
    for volume in spec.volumes:
        if not injection.native and volume.mountpoint not in {None, volume.path}:
            raise PodUnsupported(
                f"bucket volume {volume.label} has a `mountPath` ({volume.path}), and "
                "without native sidecars a failed mount would be an empty directory there",
                "use native sidecars (Kubernetes 1.29), or leave its `mountPath` out",
            )


def _annotate(pod: Json, spec: PersistenceSpec) -> None:
    metadata = pod["metadata"] = mapping(pod, "metadata", "pod")
    annotations = metadata["annotations"] = mapping(metadata, "annotations", "pod.metadata")
    annotations[STATUS_ANNOTATION] = INJECTED
    annotations[SPEC_ANNOTATION] = spec.to_json(indent=None)
    size_bytes = sum(len(f"{key}{value}".encode()) for key, value in annotations.items())
    if size_bytes > ANNOTATIONS_BYTES:
        raise SpecTooLarge(
            f"the pod's annotations and its spec of {len(spec.volumes)} volumes take "
            f"{size_bytes // KIB} KiB of the {ANNOTATIONS_BYTES // KIB} that Kubernetes keeps",
            "select fewer volumes with the annotation `mount-sidecar.io/data`",
        )


class _Pod:
    """One pod spec while it is changed, in place."""

    def __init__(
        self,
        pod_spec: Json,
        spec: PersistenceSpec,
        request: PodRequest,
        injection: Injection,
    ) -> None:
        self._pod_spec = pod_spec
        self._spec = spec
        self._request = request
        self._injection = injection
        self._volumes = mappings(pod_spec, "volumes", _SPEC)
        self._taken = {text(volume, "name", f"{_SPEC}.volumes") for volume in self._volumes}
        # Pod volumes by what they are for.
        self._names: dict[str, str] = {}

    def add(self) -> None:
        """Volumes, the container, and what the experiment's containers get."""
        grace_s = number(self._pod_spec, "terminationGracePeriodSeconds", _SPEC)
        grace_s = DEFAULT_GRACE_S if grace_s is None else grace_s
        self._add_volumes()
        for group in ("initContainers", "containers"):
            for container in mappings(self._pod_spec, group, _SPEC):
                self._equip(container)
        sidecar = sidecar_container(
            self._spec,
            self._request,
            self._injection,
            sidecar_mounts(self._spec, self._names),
            pod_grace_s=grace_s,
            stop_with_experiment=self._stops_with_experiment(),
        )
        group = "initContainers" if self._injection.native else "containers"
        self._pod_spec[group] = [sidecar, *mappings(self._pod_spec, group, _SPEC)]
        # The experiment keeps all of its own time, and the sidecar has its own after it.
        self._pod_spec["terminationGracePeriodSeconds"] = grace_s + int(self._spec.times.grace_s)

    def _stops_with_experiment(self) -> bool:
        """An ordinary container would keep a pod that runs to completion from completing."""
        always = (None, "Always")
        return not self._injection.native and self._pod_spec.get("restartPolicy") not in always

    # --- the pod's volumes -------------------------------------------------------------------

    def _add_volumes(self) -> None:
        spec = self._spec
        self._add_volume("shared", {"emptyDir": {"sizeLimit": _SHARED_BYTES}})
        state = {"emptyDir": {"sizeLimit": str(state_bytes(spec, self._request))}}
        self._add_volume("state", state)
        field = {"fieldPath": f"metadata.annotations['{SPEC_ANNOTATION}']"}
        self._add_volume(
            "spec", {"downwardAPI": {"items": [{"path": "spec.json", "fieldRef": field}]}}
        )
        if spec.buckets:
            self._add_volume("fuse", {"hostPath": {"path": "/dev/fuse", "type": "CharDevice"}})
        for index, (secret, keys) in enumerate(secret_keys(spec).items()):
            source = {
                "secretName": secret,
                "items": [{"key": key, "path": key} for key in keys],
                "defaultMode": _SECRET_MODE,
            }
            self._add_volume(f"secret {secret}", {"secret": source}, f"secret-{index}")
        for index, volume in enumerate(spec.volumes):
            if isinstance(volume.source, HostPathSource):
                purpose = f"{volume.kind} {volume.name}"
                self._add_volume(purpose, {"hostPath": _host_path(volume)}, f"host-path-{index}")
            elif isinstance(volume.source, ClaimSource):
                self._add_claim(volume, volume.source.claim, index)
        self._pod_spec["volumes"] = self._volumes

    def _add_volume(self, purpose: str, source: Json, name: str | None = None) -> None:
        free = first = f"{CONTAINER_NAME}-{name or purpose}"
        number_ = 2
        while free in self._taken:
            free, number_ = f"{first}-{number_}", number_ + 1
        self._taken.add(free)
        self._names[purpose] = free
        self._volumes = [*self._volumes, {"name": free, **source}]

    def _add_claim(self, volume: Volume, claim: str, index: int) -> None:
        """One pod volume for each claim: a pod with two of the same claim may never start."""
        purpose = f"{volume.kind} {volume.name}"
        for there in self._volumes:
            source = mapping(there, "persistentVolumeClaim", f"{_SPEC}.volumes")
            if source.get("claimName") != claim:
                continue
            if source.get("readOnly") and not volume.read_only:
                raise PodConflict(
                    f"the pod has the claim `{claim}` read-only as its volume `{there['name']}`, "
                    f"and {volume.kind} volume `{volume.name}` is writable",
                    "remove `readOnly` there, or add it to the catalogue",
                )
            self._names[purpose] = there["name"]
            return
        self._add_volume(purpose, {"persistentVolumeClaim": {"claimName": claim}}, f"claim-{index}")

    # --- the experiment's containers -----------------------------------------------------------

    def _equip(self, container: Json) -> None:
        """Mounts and variables for one container."""
        name = text(container, "name", f"{_SPEC}.containers")
        where = f"container `{name}`"
        own = mappings(container, "volumeMounts", where)
        added = []
        for mount, volume in self._experiment_mounts():
            if not any(self._is_the_same(there, volume) for there in own):
                self._refuse_overlap(own, mount["mountPath"], where, volume)
                added.append(mount)
        container["volumeMounts"] = [*own, *added]
        self._set_environment(container, where)

    def _experiment_mounts(self) -> list[tuple[Json, Volume | None]]:
        shared = {
            "name": self._names["shared"],
            "mountPath": self._spec.roots.shared,
            # Of the directory itself, so that nothing is written beside the mounts, and lost;
            # a mount in it that is writable stays so.
            "readOnly": True,
            "mountPropagation": "HostToContainer",
        }
        mounts: list[tuple[Json, Volume | None]] = [(shared, None)]
        for volume in self._spec.volumes:
            if not volume.is_bucket:
                name = self._names[f"{volume.kind} {volume.name}"]
                mounts.append((path_mount(name, volume.path, volume.read_only), volume))
            elif volume.mountpoint is not None and volume.path != volume.mountpoint:
                sub_path = volume.mountpoint.removeprefix(f"{self._spec.roots.shared}/")
                mount = path_mount(self._names["shared"], volume.path, volume.read_only)
                mounts.append(({**mount, "subPath": sub_path}, volume))
        return mounts

    def _is_the_same(self, there: Json, volume: Volume | None) -> bool:
        """Whether a container mounts a hostPath or a claim at its path by itself."""
        if volume is None or volume.is_bucket or there.get("mountPath") != volume.path:
            return False
        source: Any = next((v for v in self._volumes if v["name"] == there.get("name")), {})
        if isinstance(volume.source, HostPathSource):
            path: Any = mapping(source, "hostPath", _SPEC).get("path")
            return bool(path == volume.source.host_path)
        return there.get("name") == self._names[f"{volume.kind} {volume.name}"]

    def _refuse_overlap(
        self, own: list[Json], path: str, where: str, volume: Volume | None
    ) -> None:
        for there in own:
            other = text(there, "mountPath", f"{where}.volumeMounts").rstrip("/")
            # Below a bucket the container runtime would have to make a directory in it.
            below = volume is None or volume.is_bucket
            if other == path or (below and contains(path, other)):
                what = f"{volume.kind} volume `{volume.name}`" if volume else "the sidecar"
                raise PodConflict(
                    f"{where} mounts `{there.get('name')}` at `{other}`, and {what} needs `{path}`",
                    "mount it elsewhere",
                )

    def _set_environment(self, container: Json, where: str) -> None:
        # A kubelet replaces $(NAME), and makes $ of $$.
        wanted = {key: value.replace("$", "$$") for key, value in self._spec.environment.items()}
        kept = [
            variable
            for variable in mappings(container, "env", where)
            if variable.get("name") not in wanted
        ]
        container["env"] = [
            *kept,
            *({"name": key, "value": value} for key, value in wanted.items()),
        ]


def _host_path(volume: Volume) -> Json:
    """Data must be there, since a directory made on the spot would pass for an empty data set."""
    assert isinstance(volume.source, HostPathSource)
    kind = "Directory" if volume.kind == "data" or volume.read_only else "DirectoryOrCreate"
    return {"path": volume.source.host_path, "type": kind}
